"""APO-down against the paper's equation 8, worked out by hand."""

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

CASES = [{"name": "apo_down"}, {"name": "apo_down", "beta": 0.02}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All rewards are 0: 1/2 + 1 - 1/2."""
    return mean_over_pairs(inputs, lambda w, r: 1.0)


def test_a_pair_costs_what_equation_8_says():
    objective = build({"name": "apo_down", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # r = 0.5 * (2, -1) = (1, -0.5), m = 1.5
    assert losses.item() == pytest.approx(sigmoid(1.0) + 1 - sigmoid(1.5), rel=1e-12)
    anchor = 0.5 * sigmoid(1.0) * sigmoid(-1.0)
    apart = 0.5 * sigmoid(1.5) * sigmoid(-1.5)
    assert gradient.tolist()[0] == pytest.approx([anchor - apart, apart], rel=1e-12)
    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_at_the_reference_it_leaves_the_preferred_one_alone_and_lowers_the_other():
    objective = build({"name": "apo_down", "beta": 0.4})
    inputs = inputs_of([[-10.0, -30.0]], [[-10.0, -30.0]], [[1, 0]])

    _, gradient = losses_and_gradient(objective, inputs)

    # beta / 4 - beta / 4, and beta / 4
    assert gradient.tolist()[0] == pytest.approx([0.0, 0.1], abs=1e-15)


def test_once_they_are_apart_it_lowers_the_preferred_one_too():
    objective = build({"name": "apo_down", "beta": 1.0})
    inputs = inputs_of([[0.0, -5.0]], [[0.0, 0.0]], [[1, 0]])

    _, gradient = losses_and_gradient(objective, inputs)

    # 1/4 - sigmoid(5) sigmoid(-5) > 0: descent lowers its log-prob
    slope = sigmoid(5.0) * sigmoid(-5.0)
    assert gradient.tolist()[0] == pytest.approx([0.25 - slope, slope], rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta = 0.1

    def cost(w: Response, r: Response) -> float:
        return sigmoid(beta * w.log_ratio) + 1 - sigmoid(beta * (w.log_ratio - r.log_ratio))

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        reward, m = beta * w.log_ratio, beta * (w.log_ratio - r.log_ratio)
        apart = beta * sigmoid(m) * sigmoid(-m)
        return beta * sigmoid(reward) * sigmoid(-reward) - apart, apart

    objective = build({"name": "apo_down", "beta": beta})
    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_it_lies_between_0_and_2_and_saturates_on_both_sides():
    objective = build({"name": "apo_down", "beta": 1.0})
    policy = [[1e4, 2e4], [-1e4, -2e4], [1e4, -1e4]]
    scores = [[1, 0], [1, 0], [1, 0]]
    inputs = inputs_of(policy, [[0.0, 0.0]] * 3, scores, dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # 1 + 1 - 0; 0 + 1 - 1; 1 + 1 - 1
    assert losses.tolist() == [2.0, 0.0, 1.0]
    assert (gradient == 0).all()


def test_beta_0_is_refused():
    with pytest.raises(UserError, match=r"^objective\.beta should be greater than 0, got 0\.$"):
        build({"name": "apo_down", "beta": 0})
