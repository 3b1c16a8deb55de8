"""IPO against the paper's equation 17, worked out by hand, in both of its conventions."""

import pytest
import torch
from torch import Tensor

from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import inputs_of, losses_and_gradient

CASES = [
    {"name": "ipo"},
    {"name": "ipo", "tau": 0.4, "length_normalized": False},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All gaps are 0, so each pair costs the target squared: (1 / (2 tau))^2."""
    target = 1 / (2 * objective.model_dump()["tau"])
    values = [
        target**2 if len(set(scores[where].tolist())) > 1 else 0.0
        for scores, where in zip(inputs.scores, inputs.where, strict=True)
    ]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def test_a_pair_of_sums_costs_what_equation_17_says():
    objective = build({"name": "ipo", "tau": 0.25, "length_normalized": False})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]], num_tokens=[[4, 10]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h_w - h_l = 2 + 1 = 3, target 1 / (2 * 0.25) = 2: (3 - 2)^2 = 1, slope 2 * (3 - 2) = 2
    assert losses.tolist() == pytest.approx([1.0], rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([2.0, -2.0], rel=1e-12)


def test_a_pair_of_means_reads_log_ratios_per_token():
    objective = build({"name": "ipo", "tau": 0.25})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]], num_tokens=[[4, 10]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # 2 / 4 - (-1 / 10) = 0.6: (0.6 - 2)^2 = 1.96; slope -2.8 per nat per token, / 4 and / 10
    assert losses.tolist() == pytest.approx([1.96], rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([-0.7, 0.28], rel=1e-12)


def test_means_per_token_and_tau_a_tenth_are_the_default():
    assert build({"name": "ipo"}) == build({"name": "ipo", "tau": 0.1, "length_normalized": True})


def test_the_loss_and_its_gradient_are_zero_at_the_target():
    objective = build({"name": "ipo", "tau": 0.1, "length_normalized": False})
    # 1 / (2 * 0.1) = 5 nats
    inputs = inputs_of([[-7.0, -9.0]], [[-10.0, -7.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.item() == pytest.approx(0.0, abs=1e-24)
    assert gradient.abs().max() < 1e-12


def test_rewards_are_tau_times_what_the_loss_reads():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]], num_tokens=[[4, 10]])

    of_sums = build({"name": "ipo", "tau": 0.5, "length_normalized": False})(inputs).rewards
    of_means = build({"name": "ipo", "tau": 0.5})(inputs).rewards

    # 0.5 * (2, -1), and 0.5 * (2 / 4, -1 / 10)
    assert of_sums.tolist()[0] == pytest.approx([1.0, -0.5])
    assert of_means.tolist()[0] == pytest.approx([0.25, -0.05])


def test_a_gap_of_10000_nats_costs_its_square():
    objective = build({"name": "ipo", "tau": 0.5, "length_normalized": False})
    inputs = inputs_of([[-1e4, 0.0]], [[0.0, 0.0]], [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # (-10000 - 1)^2, slope 2 * -10001
    assert losses.item() == pytest.approx(10001.0**2, rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-20002.0, 20002.0], rel=1e-6)


def test_a_list_costs_the_mean_over_its_preferred_pairs():
    objective = build({"name": "ipo", "tau": 0.5, "length_normalized": False})
    inputs = inputs_of([[3.0, 1.0, -0.5]], [[0.0, 0.0, 0.0]], [[3, 2, 2]])

    losses = objective(inputs).losses

    # target 1; 0 beats 1 by 2 and 2 by 3.5; 1 and 2 tie: ((2 - 1)^2 + (3.5 - 1)^2) / 2 = 3.625
    assert losses.tolist() == pytest.approx([3.625], rel=1e-12)


def test_a_gap_that_is_no_preference_leaves_no_trace_however_large():
    objective = build({"name": "ipo", "tau": 0.5, "length_normalized": False})
    # 1 and 2 tie, 3e30 nats apart: squared, that is beyond float32.
    inputs = inputs_of(
        [[1.0, 0.0, 0.0], [3e30, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[1, 0, 0], [1, 1, 1]],
        dtype=torch.float32,
    )

    losses, gradient = losses_and_gradient(objective, inputs)

    # (1 - 1)^2 for both pairs of the first group, nothing in the second
    assert losses.tolist() == [0.0, 0.0]
    assert torch.isfinite(gradient).all()
