"""Ranking gamma against its equation, worked out by hand."""

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
    {"name": "ranking_gamma"},
    {"name": "ranking_gamma", "gamma": 0},
    {"name": "ranking_gamma", "beta": 0.3, "gamma": 0.4},
    {"name": "ranking_gamma", "beta": 0.05, "gamma": 2},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """What is left of the margin is beta (1 - gamma) (logp_w - logp_l)."""
    beta, gamma = (objective.model_dump()[key] for key in ("beta", "gamma"))

    def cost(w: Response, r: Response) -> float:
        return -math.log(sigmoid(beta * (1 - gamma) * (w.logp - r.logp)))

    return mean_over_pairs(inputs, cost)


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "ranking_gamma", "beta": 0.5, "gamma": 0.25})
    inputs = inputs_of([[-10.0, -9.0]], [[-12.0, -4.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # 0.5 * (-10 + 9 + 0.25 * (-4 + 12)) = 0.5
    assert losses.item() == pytest.approx(-math.log(sigmoid(0.5)), rel=1e-12)
    slope = 0.5 * sigmoid(-0.5)
    assert gradient.tolist()[0] == pytest.approx([-slope, slope], rel=1e-12)


def test_rewards_are_what_the_loss_compares():
    objective = build({"name": "ranking_gamma", "beta": 0.5, "gamma": 0.25})
    inputs = inputs_of([[-10.0, -9.0]], [[-12.0, -4.0]], [[1, 0]])

    # 0.5 * (-10 + 0.25 * 12) and 0.5 * (-9 + 0.25 * 4)
    assert objective(inputs).rewards.tolist() == [[-3.5, -4.0]]


def test_gamma_1_is_dpo():
    inputs = draw(build({"name": "dpo"})).inputs

    ranking = losses_and_gradient(build({"name": "ranking_gamma", "beta": 0.3}), inputs)
    dpo = losses_and_gradient(build({"name": "dpo", "beta": 0.3}), inputs)

    torch.testing.assert_close(ranking, dpo, rtol=1e-12, atol=1e-12)


def test_gamma_0_needs_no_reference_and_compares_log_probs():
    objective = build({"name": "ranking_gamma", "beta": 0.5, "gamma": 0})
    inputs = inputs_of([[-10.0, -9.0]], None, [[1, 0]])

    # 0.5 * (-10 + 9)
    assert not objective.needs_reference
    assert objective(inputs).losses.item() == pytest.approx(-math.log(sigmoid(-0.5)), rel=1e-12)
    assert build({"name": "ranking_gamma", "gamma": 0.1}).needs_reference


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("num_slots", [1, 2, 5, 16])
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int, gamma: float):
    beta = 0.1

    def margin(w: Response, r: Response) -> float:
        return beta * (w.logp - r.logp + gamma * (r.reference - w.reference))

    def cost(w: Response, r: Response) -> float:
        return -math.log(sigmoid(margin(w, r)))

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        kappa = sigmoid(-margin(w, r))
        return -beta * kappa, beta * kappa

    objective = build({"name": "ranking_gamma", "beta": beta, "gamma": gamma})
    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


def test_below_gamma_1_a_small_loss_is_a_right_ranking_where_with_dpo_it_is_not():
    # The reference ranks the pair wrong by 20 nats, the policy still by 5.
    inputs = inputs_of([[-25.0, -20.0]], [[-40.0, -20.0]], [[1, 0]])
    dpo, free = ({"name": "ranking_gamma", "gamma": gamma} for gamma in (1, 0))

    # 0.1 * (-5 + 20) = 1.5, and 0.1 * -5
    assert build(dpo)(inputs).losses.item() == pytest.approx(-math.log(sigmoid(1.5)))
    assert build(free)(inputs).losses.item() == pytest.approx(-math.log(sigmoid(-0.5)))


def test_a_preferred_response_10000_nats_behind_costs_beta_times_that():
    objective = build({"name": "ranking_gamma", "beta": 0.1, "gamma": 0.5})
    policy, reference = [[-1e4, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1e4, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # 0.1 * 10^4; 0.1 * 0.5 * 10^4
    assert losses.tolist() == pytest.approx([1000.0, 500.0], rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-0.1, 0.1], rel=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gamma": 2.1}, r"^objective\.gamma should be less than or equal to 2, got 2\.1\.$"),
        ({"gamma": -0.1}, r"^objective\.gamma should be greater than or equal to 0, got -0\.1\.$"),
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
    ],
)
def test_numbers_out_of_range_are_refused(section: dict[str, float], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "ranking_gamma", **section})
