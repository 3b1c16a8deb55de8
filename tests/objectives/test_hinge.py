"""Hinge against its equation, worked out by hand."""

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import inputs_of, losses_and_gradient
from tests.objectives.pair_loops import Response, assert_is_the_mean_over_pairs, mean_over_pairs

CASES = [{"name": "hinge"}, {"name": "hinge", "beta": 0.01}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All margins are 0: 1 is missing."""
    return mean_over_pairs(inputs, lambda w, r: 1.0)


def test_a_pair_below_the_margin_costs_what_is_missing():
    objective = build({"name": "hinge", "beta": 0.25})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (2, -1), m = 0.25 * 3 = 0.75: 1 - 0.75, with slope beta
    assert losses.tolist() == [0.25]
    assert gradient.tolist() == [[-0.25, 0.25]]


def test_a_pair_beyond_the_margin_costs_nothing_and_has_no_gradient():
    objective = build({"name": "hinge", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # m = 1.5
    assert losses.tolist() == [0.0]
    assert (gradient == 0).all()
    assert objective(inputs).counted.tolist() == [True]


def test_rewards_are_beta_times_log_ratios():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    assert build({"name": "hinge", "beta": 0.5})(inputs).rewards.tolist() == [[1.0, -0.5]]


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta = 0.03

    def cost(w: Response, r: Response) -> float:
        return max(0.0, 1 - beta * (w.log_ratio - r.log_ratio))

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        return (-beta, beta) if cost(w, r) > 0 else (0.0, 0.0)

    assert_is_the_mean_over_pairs(build({"name": "hinge", "beta": beta}), num_slots, cost, slopes)


def test_10000_nats_behind_cost_beta_times_that_and_10000_ahead_nothing():
    objective = build({"name": "hinge", "beta": 0.1})
    policy, reference = [[-1e4, 0.0], [1e4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == pytest.approx([1001.0, 0.0], rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-0.1, 0.1], rel=1e-6)
    assert gradient.tolist()[1] == [0.0, 0.0]


def test_beta_0_is_refused():
    with pytest.raises(UserError, match=r"^objective\.beta should be greater than 0, got 0\.$"):
        build({"name": "hinge", "beta": 0})
