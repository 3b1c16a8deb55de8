"""Robust DPO against its equation, worked out by hand, and against DPO under flipped labels."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.pair_loops import (
    Response,
    assert_is_the_mean_over_pairs,
    mean_over_pairs,
    sigmoid,
)

CASES = [
    {"name": "robust_dpo"},
    {"name": "robust_dpo", "beta": 0.7, "label_smoothing": 0.3},
    {"name": "robust_dpo", "beta": 0.5, "label_smoothing": 0.0},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """(1 - eps) log 2 - eps log 2 is (1 - 2 eps) log 2, which the divisor takes back to log 2."""
    return mean_over_pairs(inputs, lambda w, r: math.log(2))


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "robust_dpo", "beta": 0.5, "label_smoothing": 0.2})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (2, -1), m = 0.5 * 3 = 1.5; 1 - 2 eps = 0.6
    expected = (-0.8 * math.log(sigmoid(1.5)) + 0.2 * math.log(sigmoid(-1.5))) / 0.6
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    slope = 0.5 * (0.8 * sigmoid(-1.5) + 0.2 * sigmoid(1.5)) / 0.6
    assert gradient.tolist()[0] == pytest.approx([-slope, slope], rel=1e-12)


def test_rewards_are_beta_times_log_ratios():
    objective = build({"name": "robust_dpo", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_without_flipped_labels_it_is_dpo():
    section = {"beta": 0.3, "label_smoothing": 0.0}
    inputs = draw(build({"name": "dpo"})).inputs

    robust = losses_and_gradient(build({"name": "robust_dpo", **section}), inputs)
    dpo = losses_and_gradient(build({"name": "dpo", **section}), inputs)

    torch.testing.assert_close(robust, dpo, rtol=1e-12, atol=1e-12)


def test_the_mean_over_flips_of_the_label_is_dpo_on_the_clean_one():
    robust = build({"name": "robust_dpo", "beta": 0.5, "label_smoothing": 0.2})
    clean = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])
    flipped = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[0, 1]])

    mean = 0.8 * robust(clean).losses + 0.2 * robust(flipped).losses

    # DPO at m = 1.5
    assert mean.item() == pytest.approx(-math.log(sigmoid(1.5)), rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta, eps = 0.2, 0.3
    objective = build({"name": "robust_dpo", "beta": beta, "label_smoothing": eps})

    def cost(w: Response, r: Response) -> float:
        m = beta * (w.log_ratio - r.log_ratio)
        return (-(1 - eps) * math.log(sigmoid(m)) + eps * math.log(sigmoid(-m))) / (1 - 2 * eps)

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        m = beta * (w.log_ratio - r.log_ratio)
        slope = beta * ((1 - eps) * sigmoid(-m) + eps * sigmoid(m)) / (1 - 2 * eps)
        return -slope, slope

    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_the_loss_falls_without_limit_and_its_slope_never_vanishes():
    objective = build({"name": "robust_dpo", "beta": 0.1, "label_smoothing": 0.25})
    policy, reference = [[1e4, 0.0], [-1e4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # m = 1000: 0 - 0.25 * 1000 / 0.5 = -500, slope 0.1 * 0.25 / 0.5 = 0.05
    # m = -1000: 0.75 * 1000 / 0.5 = 1500, slope 0.1 * 0.75 / 0.5 = 0.15
    assert losses.tolist() == pytest.approx([-500.0, 1500.0], rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-0.05, 0.05], rel=1e-6)
    assert gradient.tolist()[1] == pytest.approx([-0.15, 0.15], rel=1e-6)


@pytest.mark.parametrize("eps", [0.5, 0.7, -0.1])
def test_half_the_labels_flipped_or_more_is_refused(eps: float):
    with pytest.raises(UserError, match=r"^objective\.label_smoothing should be (less|greater)"):
        build({"name": "robust_dpo", "label_smoothing": eps})
