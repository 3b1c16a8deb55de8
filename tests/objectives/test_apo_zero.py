"""APO-zero against the paper's equation 7, worked out by hand."""

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

CASES = [{"name": "apo_zero"}, {"name": "apo_zero", "beta": 0.02}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All rewards are 0: 1 - 1/2 + 1/2."""
    return mean_over_pairs(inputs, lambda w, r: 1.0)


def test_a_pair_costs_what_equation_7_says():
    objective = build({"name": "apo_zero", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # r = 0.5 * (2, -1) = (1, -0.5)
    assert losses.item() == pytest.approx(1 - sigmoid(1.0) + sigmoid(-0.5), rel=1e-12)
    # d sigmoid(r) / d logp = beta sigmoid(r) sigmoid(-r)
    up, down = 0.5 * sigmoid(1.0) * sigmoid(-1.0), 0.5 * sigmoid(0.5) * sigmoid(-0.5)
    assert gradient.tolist()[0] == pytest.approx([-up, down], rel=1e-12)
    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_one_response_does_not_change_the_gradient_of_the_other():
    objective = build({"name": "apo_zero", "beta": 0.5})
    near = inputs_of([[2.0, -1.0]], [[0.0, 0.0]], [[1, 0]])
    far = inputs_of([[2.0, 6.0]], [[0.0, 0.0]], [[1, 0]])

    _, one = losses_and_gradient(objective, near)
    _, other = losses_and_gradient(objective, far)

    assert one[0, 0] == other[0, 0]
    assert one[0, 1] != other[0, 1]


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta = 0.1

    def cost(w: Response, r: Response) -> float:
        return 1 - sigmoid(beta * w.log_ratio) + sigmoid(beta * r.log_ratio)

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        up, down = beta * w.log_ratio, beta * r.log_ratio
        return -beta * sigmoid(up) * sigmoid(-up), beta * sigmoid(down) * sigmoid(-down)

    objective = build({"name": "apo_zero", "beta": beta})
    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_it_lies_between_0_and_2_and_saturates_on_both_sides():
    objective = build({"name": "apo_zero", "beta": 1.0})
    policy, reference = [[-1e4, 1e4], [1e4, -1e4]], [[0.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [2.0, 0.0]
    assert (gradient == 0).all()


def test_a_reward_of_80_still_leaves_e_to_the_minus_80():
    inputs = inputs_of([[80.0, -90.0]], [[0.0, 0.0]], [[1, 0]])

    losses = build({"name": "apo_zero", "beta": 1.0})(inputs).losses

    # 1 - sigmoid(80) = 1 / (1 + e^80), where 1 - (a number near 1) would say 0
    expected = 1 / (1 + math.exp(80)) + 1 / (1 + math.exp(90))
    assert losses.item() == pytest.approx(expected, rel=1e-12)


def test_beta_0_is_refused():
    with pytest.raises(UserError, match=r"^objective\.beta should be greater than 0, got 0\.$"):
        build({"name": "apo_zero", "beta": 0})
