"""DPOP against its equation, worked out by hand, and against DPO where nothing is penalised."""

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

CASES = [{"name": "dpop"}, {"name": "dpop", "beta": 0.7, "penalty": 5.0}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The margin is 0 and nothing is below the reference: -log sigmoid(0) is log 2."""
    return mean_over_pairs(inputs, lambda w, r: math.log(2))


def test_a_preferred_response_below_the_reference_is_penalised():
    objective = build({"name": "dpop", "beta": 0.5, "penalty": 2.0})
    inputs = inputs_of([[-12.0, -30.0]], [[-11.0, -25.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (-1, -5), penalty 2 * 1, m = 0.5 * (-1 + 5 - 2) = 1
    assert losses.item() == pytest.approx(-math.log(sigmoid(1.0)), rel=1e-12)
    # 0.5 * (1 + 2) * sigmoid(-1) up for the preferred one, 0.5 * sigmoid(-1) down for the other
    slopes = [-1.5 * sigmoid(-1.0), 0.5 * sigmoid(-1.0)]
    assert gradient.tolist()[0] == pytest.approx(slopes, rel=1e-12)
    # 0.5 * (-1, -5), without the penalty
    assert objective(inputs).rewards.tolist() == [[-0.5, -2.5]]


def test_a_preferred_response_above_the_reference_costs_what_dpo_says():
    objective = build({"name": "dpop", "beta": 0.5, "penalty": 2.0})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (2, -1): the rejected one is below the reference, and nothing is penalised. m = 1.5
    assert losses.item() == pytest.approx(-math.log(sigmoid(1.5)), rel=1e-12)
    slope = 0.5 * sigmoid(-1.5)
    assert gradient.tolist()[0] == pytest.approx([-slope, slope], rel=1e-12)


def test_at_the_reference_the_gradient_is_that_of_dpo():
    inputs = inputs_of([[-12.0, -30.0]], [[-12.0, -30.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(build({"name": "dpop"}), inputs)

    # The subgradient of max(0, x) at 0 is 0: beta * sigmoid(0) = 0.1 / 2, not 51 times that
    assert losses.item() == pytest.approx(math.log(2), rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([-0.05, 0.05], rel=1e-12)


@pytest.mark.parametrize(("h_w", "times"), [(-1e-9, 51.0), (0.0, 1.0), (1e-9, 1.0)])
def test_the_slope_jumps_at_the_reference_and_the_loss_does_not(h_w: float, times: float):
    inputs = inputs_of([[h_w, 0.0]], [[0.0, 0.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(build({"name": "dpop"}), inputs)

    # |m| is at most 0.1 * 51 * 1e-9
    assert losses.item() == pytest.approx(math.log(2), abs=1e-8)
    assert gradient.tolist()[0] == pytest.approx([-0.05 * times, 0.05], rel=1e-7)


def test_a_negligible_penalty_leaves_dpo():
    dpop = build({"name": "dpop", "beta": 0.3, "penalty": 1e-300})
    dpo = build({"name": "dpo", "beta": 0.3})
    inputs = draw(dpo).inputs

    expected = losses_and_gradient(dpo, inputs)

    torch.testing.assert_close(losses_and_gradient(dpop, inputs), expected, rtol=1e-12, atol=1e-12)


def test_in_a_list_only_the_preferred_side_of_a_pair_is_penalised():
    objective = build({"name": "dpop", "beta": 1.0, "penalty": 3.0})
    inputs = inputs_of([[1.0, -1.0, -0.5]], [[0.0, 0.0, 0.0]], [[3, 2, 1]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # 0 beats 1 by 1 + 1 = 2, and 2 by 1 + 0.5 = 1.5, unpenalised: it is above the reference.
    # 1 beats 2 by -1 + 0.5 - 3 * 1 = -3.5
    expected = -(math.log(sigmoid(2.0)) + math.log(sigmoid(1.5)) + math.log(sigmoid(-3.5))) / 3
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    # Slot 1 is pushed down by slot 0 with slope 1, and up against slot 2 with slope 1 + 3
    slopes = [
        -(sigmoid(-2.0) + sigmoid(-1.5)) / 3,
        (sigmoid(-2.0) - 4 * sigmoid(3.5)) / 3,
        (sigmoid(-1.5) + sigmoid(3.5)) / 3,
    ]
    assert gradient.tolist()[0] == pytest.approx(slopes, rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta, penalty = 0.02, 4.0
    objective = build({"name": "dpop", "beta": beta, "penalty": penalty})

    def margin(w: Response, r: Response) -> float:
        return beta * (w.log_ratio - r.log_ratio - penalty * max(0.0, -w.log_ratio))

    def cost(w: Response, r: Response) -> float:
        return -math.log(sigmoid(margin(w, r)))

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        slope = beta * sigmoid(-margin(w, r))
        return -slope * (1 + penalty * (w.logp < w.reference)), slope

    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_10000_nats_cost_51_times_as_much_below_the_reference():
    objective = build({"name": "dpop", "beta": 0.1, "penalty": 50.0})
    policy = [[-1e4, 0.0], [0.0, 1e4], [1e4, 0.0]]
    zeros = [[0.0, 0.0]] * 3
    inputs = inputs_of(policy, zeros, [[1, 0]] * 3, dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # m = 0.1 * -10^4 * 51 = -51000, slopes 0.1 * 51 and 0.1; m = -1000, nothing is penalised;
    # m = 1000: e^-1000 is 0
    assert losses.tolist() == pytest.approx([51000.0, 1000.0, 0.0], rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-5.1, 0.1], rel=1e-6)
    assert gradient.tolist()[1] == pytest.approx([-0.1, 0.1], rel=1e-6)
    assert gradient.tolist()[2] == [0.0, 0.0]


@pytest.mark.parametrize("field", ["beta", "penalty"])
def test_0_is_refused(field: str):
    with pytest.raises(UserError, match=rf"^objective\.{field} should be greater than 0, got 0\.$"):
        build({"name": "dpop", field: 0})
