"""DPO against the paper's equation 7, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import inputs_of, losses_and_gradient

CASES = [
    {"name": "dpo", "beta": 0.7, "label_smoothing": 0.1},
    {"name": "dpo"},
    {"name": "dpo", "beta": 0.5, "label_smoothing": 0.2},
    {"name": "dpo", "beta": 2.0, "length_normalized": True},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All margins are 0, and both -log sigmoid(0) are log 2: so is their mixture."""
    values = [
        math.log(2) if len(set(scores[where].tolist())) > 1 else 0.0
        for scores, where in zip(inputs.scores, inputs.where, strict=True)
    ]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_pair_costs_what_equation_7_says():
    objective = build({"name": "dpo", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (-10 + 12, -30 + 29) = (2, -1), m = 0.5 * (2 + 1) = 1.5
    assert losses.item() == pytest.approx(-math.log(sigmoid(1.5)), rel=1e-12)
    # d loss / d logp_w = -beta * sigmoid(-m), and the opposite for the other one
    slope = 0.5 * sigmoid(-1.5)
    assert gradient.tolist()[0] == pytest.approx([-slope, slope], rel=1e-12)


def test_the_order_of_the_slots_does_not_say_which_is_preferred():
    objective = build({"name": "dpo", "beta": 0.5})
    inputs = inputs_of([[-30.0, -10.0]], [[-29.0, -12.0]], [[0, 1]])

    output = objective(inputs)

    # The pair of the test above, its slots exchanged: m = 1.5
    assert output.losses.item() == pytest.approx(-math.log(sigmoid(1.5)), rel=1e-12)


def test_rewards_are_beta_times_log_ratios():
    objective = build({"name": "dpo", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    output = objective(inputs)

    # 0.5 * (-10 + 12) = 1, 0.5 * (-30 + 29) = -0.5
    assert output.rewards.tolist() == [[1.0, -0.5]]


def test_label_smoothing_mixes_in_the_flipped_pair():
    objective = build({"name": "dpo", "beta": 0.5, "label_smoothing": 0.2})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses = objective(inputs).losses

    # m = 1.5: 0.8 * -log sigmoid(1.5) + 0.2 * -log sigmoid(-1.5)
    expected = -0.8 * math.log(sigmoid(1.5)) - 0.2 * math.log(sigmoid(-1.5))
    assert losses.item() == pytest.approx(expected, rel=1e-12)


def test_with_label_smoothing_the_gradient_vanishes_at_a_finite_margin():
    objective = build({"name": "dpo", "beta": 0.5, "label_smoothing": 0.2})
    # sigmoid(m) = 1 - eps at m = log(0.8 / 0.2) = log 4, so h_w = log(4) / 0.5
    inputs = inputs_of([[math.log(4) / 0.5, 0.0]], [[0.0, 0.0]], [[1, 0]])

    _, gradient = losses_and_gradient(objective, inputs)

    assert gradient.abs().max() < 1e-15


def test_length_normalisation_divides_each_log_ratio_by_its_own_tokens():
    objective = build({"name": "dpo", "beta": 2.0, "length_normalized": True})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]], num_tokens=[[4, 10]])

    output = objective(inputs)

    # m = 2 * (2 / 4 - (-1 / 10)) = 1.2
    assert output.losses.item() == pytest.approx(-math.log(sigmoid(1.2)), rel=1e-12)
    assert output.rewards.tolist()[0] == pytest.approx([1.0, -0.2])


def test_a_preferred_response_10000_nats_behind_costs_beta_times_that():
    objective = build({"name": "dpo", "beta": 0.1})
    inputs = inputs_of([[-1e4, 0.0]], [[0.0, 0.0]], [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # m = -1000: -log sigmoid(m) = 1000 + log(1 + e^-1000) = 1000, with slope beta
    assert losses.item() == pytest.approx(1000.0, rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-0.1, 0.1], rel=1e-6)


def test_a_margin_of_80_still_costs_e_to_the_minus_80():
    objective = build({"name": "dpo", "beta": 1.0})
    inputs = inputs_of([[80.0, 0.0]], [[0.0, 0.0]], [[1, 0]])

    losses = objective(inputs).losses

    # -log sigmoid(80) = log(1 + e^-80) = e^-80 up to e^-160: not 0, as log(1 + x) alone would say
    assert losses.item() == pytest.approx(math.exp(-80), rel=1e-12)


def test_a_list_costs_the_mean_over_its_preferred_pairs():
    objective = build({"name": "dpo", "beta": 1.0})
    inputs = inputs_of([[1.0, -1.0, 0.5]], [[0.0, 0.0, 0.0]], [[3, 2, 2]])

    output = objective(inputs)

    # 0 beats 1 by m = 2, and 2 by m = 0.5; 1 and 2 tie and are no pair
    expected = -(math.log(sigmoid(2.0)) + math.log(sigmoid(0.5))) / 2
    assert output.losses.item() == pytest.approx(expected, rel=1e-12)
    assert output.counted.tolist() == [True]
