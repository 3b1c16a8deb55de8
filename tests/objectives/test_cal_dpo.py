"""Cal-DPO against its equation, worked out by hand."""

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

CASES = [{"name": "cal_dpo"}, {"name": "cal_dpo", "beta": 0.1}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """log 2, and the target squared for each of the two responses."""
    target = 1 / (2 * objective.model_dump()["beta"])
    return mean_over_pairs(inputs, lambda w, r: math.log(2) + 2 * target**2)


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "cal_dpo", "beta": 0.25})
    inputs = inputs_of([[-10.0, -30.0]], [[-11.0, -29.5]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (1, -0.5), targets (2, -2): -log sigmoid(1.5) + (1 - 2)^2 + (-0.5 + 2)^2
    assert losses.item() == pytest.approx(-math.log(sigmoid(1.5)) + 1 + 2.25, rel=1e-12)
    # -sigmoid(-1.5) + 2 (1 - 2), and sigmoid(-1.5) + 2 (-0.5 + 2)
    slopes = [-sigmoid(-1.5) - 2, sigmoid(-1.5) + 3]
    assert gradient.tolist()[0] == pytest.approx(slopes, rel=1e-12)
    # 0.25 * (1, -0.5)
    assert objective(inputs).rewards.tolist() == [[0.25, -0.125]]


def test_the_logistic_term_has_no_beta():
    # Log-ratios at the targets, where the squares are 0: + and - 1, and + and - 10
    one = inputs_of([[1.0, -1.0]], [[0.0, 0.0]], [[1, 0]])
    other = inputs_of([[10.0, -10.0]], [[0.0, 0.0]], [[1, 0]])

    loss = build({"name": "cal_dpo", "beta": 0.5})(one).losses.item()
    other_loss = build({"name": "cal_dpo", "beta": 0.05})(other).losses.item()

    assert loss == pytest.approx(-math.log(sigmoid(2.0)), rel=1e-12)
    assert other_loss == pytest.approx(math.log1p(math.exp(-20.0)), rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    target = 1 / (2 * 0.05)

    def cost(w: Response, r: Response) -> float:
        logistic = -math.log(sigmoid(w.log_ratio - r.log_ratio))
        return logistic + (w.log_ratio - target) ** 2 + (r.log_ratio + target) ** 2

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        kappa = sigmoid(r.log_ratio - w.log_ratio)
        return -kappa + 2 * (w.log_ratio - target), kappa + 2 * (r.log_ratio + target)

    objective = build({"name": "cal_dpo", "beta": 0.05})
    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_10000_nats_cost_their_square():
    objective = build({"name": "cal_dpo", "beta": 0.5})
    policy, reference = [[-1e4, 0.0], [1e4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # 10^4 + (-10^4 - 1)^2 + 1, and 0 + (10^4 - 1)^2 + 1
    assert losses.tolist() == pytest.approx([1e4 + 10001.0**2 + 1, 9999.0**2 + 1], rel=1e-6)
    # -1 - 2 * 10001 and 1 + 2; 0 + 2 * 9999 and 0 + 2
    assert gradient.tolist()[0] == pytest.approx([-20003.0, 3.0], rel=1e-6)
    assert gradient.tolist()[1] == pytest.approx([19998.0, 2.0], rel=1e-6)


def test_beta_0_is_refused():
    with pytest.raises(UserError, match=r"^objective\.beta should be greater than 0, got 0\.$"):
        build({"name": "cal_dpo", "beta": 0})
