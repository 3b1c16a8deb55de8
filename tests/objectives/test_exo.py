"""EXO against the paper's equation 16, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import inputs_of, losses_and_gradient
from tests.objectives.pair_loops import (
    Response,
    assert_is_the_mean_over_pairs,
    mean_over_pairs,
    sigmoid,
)

CASES = [{"name": "exo"}, {"name": "exo", "beta": 0.5, "label_smoothing": 0.2}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """KL of (1/2, 1/2) from (1 - eps, eps)."""
    eps = objective.model_dump()["label_smoothing"]
    value = 0.5 * math.log(0.5 / (1 - eps)) + 0.5 * math.log(0.5 / eps)
    return mean_over_pairs(inputs, lambda w, r: value)


def test_a_pair_costs_what_equation_16_says():
    objective = build({"name": "exo", "beta": 0.5, "label_smoothing": 0.2})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (2, -1), m = 0.5 * 3 = 1.5
    p = sigmoid(1.5)
    expected = p * math.log(p / 0.8) + (1 - p) * math.log((1 - p) / 0.2)
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    # d p / d logp = beta p (1 - p), d loss / d p = m - log(0.8 / 0.2)
    slope = 0.5 * p * (1 - p) * (1.5 - math.log(4))
    assert gradient.tolist()[0] == pytest.approx([slope, -slope], rel=1e-12)
    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_the_loss_and_its_gradient_are_zero_where_policy_and_label_agree():
    objective = build({"name": "exo", "beta": 0.5, "label_smoothing": 0.2})
    # sigmoid(m) = 0.8 at m = log 4
    inputs = inputs_of([[math.log(4) / 0.5, 0.0]], [[0.0, 0.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.item() == pytest.approx(0.0, abs=1e-15)
    assert gradient.abs().max() < 1e-15


def test_a_thousandth_is_the_default():
    inputs = inputs_of([[0.0, 0.0]], [[0.0, 0.0]], [[1, 0]])

    # -log 2 - log(0.001 * 0.999) / 2
    assert build({"name": "exo"})(inputs).losses.item() == pytest.approx(2.76123, rel=1e-5)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta, eps = 0.1, 0.05

    def cost(w: Response, r: Response) -> float:
        m = beta * (w.log_ratio - r.log_ratio)
        right, wrong = sigmoid(m), sigmoid(-m)
        return right * math.log(right / (1 - eps)) + wrong * math.log(wrong / eps)

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        m = beta * (w.log_ratio - r.log_ratio)
        slope = beta * sigmoid(m) * sigmoid(-m) * (m - math.log((1 - eps) / eps))
        return slope, -slope

    objective = build({"name": "exo", "beta": beta, "label_smoothing": eps})
    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_at_margins_of_1000_it_saturates():
    objective = build({"name": "exo", "beta": 0.1, "label_smoothing": 0.1})
    policy, reference = [[-1e4, 0.0], [1e4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # (0, 1) against (0.9, 0.1) is -log 0.1; (1, 0) is -log 0.9
    assert losses.tolist() == pytest.approx([-math.log(0.1), -math.log(0.9)], rel=1e-6)
    assert (gradient == 0).all()


@pytest.mark.parametrize("zero", [0, 0.0])
def test_no_smoothing_is_refused_with_the_reason(zero: float):
    with pytest.raises(
        UserError,
        match=r"^objective\.label_smoothing should be above 0.* takes its logarithm, got 0",
    ):
        build({"name": "exo", "label_smoothing": zero})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"label_smoothing": 0.5}, r"^objective\.label_smoothing should be less than 0\.5, got"),
        ({"label_smoothing": -0.1}, r"^objective\.label_smoothing should be greater than 0, got"),
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
    ],
)
def test_other_numbers_out_of_range_are_refused(section: dict[str, float], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "exo", **section})
