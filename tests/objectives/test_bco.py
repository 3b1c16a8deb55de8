"""BCO with delta = 0 against its equation, worked out by hand."""

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

CASES = [{"name": "bco"}, {"name": "bco", "beta": 0.5}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All rewards are 0: -log(1/2), once for each response of a pair."""
    return mean_over_pairs(inputs, lambda w, r: 2 * math.log(2))


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "bco", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # r = 0.5 * (2, -1) = (1, -0.5)
    expected = -math.log(sigmoid(1.0)) - math.log(sigmoid(0.5))
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    slopes = [-0.5 * sigmoid(-1.0), 0.5 * sigmoid(-0.5)]
    assert gradient.tolist()[0] == pytest.approx(slopes, rel=1e-12)
    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta = 0.2

    def cost(w: Response, r: Response) -> float:
        return -math.log(sigmoid(beta * w.log_ratio)) - math.log(sigmoid(-beta * r.log_ratio))

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        return -beta * sigmoid(-beta * w.log_ratio), beta * sigmoid(beta * r.log_ratio)

    objective = build({"name": "bco", "beta": beta})
    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_10000_nats_on_the_wrong_side_cost_beta_times_that_each():
    objective = build({"name": "bco", "beta": 0.1})
    policy, reference = [[-1e4, 1e4], [1e4, -1e4]], [[0.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == pytest.approx([2000.0, 0.0], rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-0.1, 0.1], rel=1e-6)
    assert gradient.tolist()[1] == [0.0, 0.0]


def test_beta_0_is_refused():
    with pytest.raises(UserError, match=r"^objective\.beta should be greater than 0, got 0\.$"):
        build({"name": "bco", "beta": 0})
