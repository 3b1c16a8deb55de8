"""ORPO: odds of mean tokens by hand, and where the plain form would be infinite."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.singly import (
    gradient_over_pairs,
    length,
    mean_logp,
    mean_over_pairs,
    sigmoid,
    softplus,
)

CASES = [
    {"name": "orpo"},
    {"name": "orpo", "beta": 0.5, "odds_weight": 1.0, "nll_weight": None},
    {"name": "orpo", "beta": 2.0, "odds_weight": 0.25, "nll_weight": 0.5},
]


def odds(inputs: ObjectiveInputs, g: int, k: int) -> float:
    p = math.exp(mean_logp(inputs, g, k))
    return mean_logp(inputs, g, k) - math.log1p(-p)


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The loss itself: the reference says nothing here."""

    def cost(g: int, w: int, l_: int) -> float:
        margin = objective.beta * (odds(inputs, g, w) - odds(inputs, g, l_))
        nll = -(objective.nll_weight or 0.0) * mean_logp(inputs, g, w)
        return nll + objective.odds_weight * softplus(-margin)

    return mean_over_pairs(inputs, cost)


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "orpo", "odds_weight": 0.1})
    # Mean tokens of probability 0.8 over 5 tokens and of 0.5 over 2
    logps = [[5 * math.log(0.8), 2 * math.log(0.5)]]
    inputs = inputs_of(logps, None, [[1, 0]], num_tokens=[[5, 2]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # Odds 4 and 1: sigmoid(log 4) = 4 / 5
    assert losses.item() == pytest.approx(-math.log(0.8) - 0.1 * math.log(0.8), rel=1e-12)
    # c_w = -(1 + lambda kappa / (1 - p_w)) / n_w, c_l = lambda kappa / ((1 - p_l) n_l), kappa = 1/5
    expected = [-(1 + 0.1 * 0.2 / 0.2) / 5, 0.1 * 0.2 / 0.5 / 2]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-12)


def test_beta_multiplies_the_log_odds_and_null_leaves_out_the_nll():
    objective = build({"name": "orpo", "beta": 0.5, "odds_weight": 1.0, "nll_weight": None})
    inputs = inputs_of([[math.log(0.8), math.log(0.5)]], None, [[1, 0]])

    output = objective(inputs)

    # 0.5 * log 4 = log 2: sigmoid of it is 2 / 3
    assert output.losses.item() == pytest.approx(-math.log(2 / 3), rel=1e-12)
    assert output.rewards.tolist()[0] == pytest.approx([math.log(2), 0.0], abs=1e-15)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_a_list_is_the_mean_over_its_preferred_pairs(num_slots: int):
    objective = build({"name": "orpo", "beta": 0.7, "odds_weight": 0.4, "nll_weight": 0.3})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    def slopes(g: int, w: int, l_: int) -> tuple[float, float]:
        kappa = sigmoid(-0.7 * (odds(inputs, g, w) - odds(inputs, g, l_)))
        of_odds = [
            0.4 * 0.7 * kappa / (1 - math.exp(mean_logp(inputs, g, k))) / length(inputs, g, k)
            for k in (w, l_)
        ]
        return -of_odds[0] - 0.3 / length(inputs, g, w), of_odds[1]

    expected = value_at_reference(objective, inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        gradient, gradient_over_pairs(inputs, slopes), rtol=1e-11, atol=1e-14
    )


def test_a_preferred_response_of_minus_10000_nats_costs_about_that_and_is_raised():
    objective = build({"name": "orpo", "odds_weight": 0.1})
    inputs = inputs_of([[-1e4, -1.0]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # o_w = -1e4, o_l = -1 - log(1 - 1/e): 1e4 + 0.1 * (1e4 + o_l)
    odds_of_rejected = -1 - math.log(1 - math.exp(-1))
    assert losses.item() == pytest.approx(1e4 + 0.1 * (1e4 + odds_of_rejected), rel=1e-6)
    expected = [-1.1, 0.1 / (1 - math.exp(-1))]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("logp", [-1e-8, -0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_rejected_response_known_by_heart_is_finite_and_lowered(logp: float, dtype: torch.dtype):
    objective = build({"name": "orpo", "nll_weight": None})
    inputs = inputs_of([[-2.0, logp]], None, [[1, 0]], dtype=dtype)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] < 0 < gradient[0, 1]


def test_a_preferred_response_known_by_heart_costs_nothing():
    objective = build({"name": "orpo"})
    inputs = inputs_of([[0.0, -1e4]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [0.0]
    assert gradient.tolist() == [[-1.0, 0.0]]


def test_it_costs_no_more_than_asft():
    section = {"beta": 1.0, "odds_weight": 1.0, "nll_weight": None}
    orpo, asft = build({"name": "orpo", **section}), build({"name": "asft", **section})
    inputs = draw(orpo, num_groups=40, num_slots=2).inputs

    losses = orpo(inputs).losses

    # -log of o_w / (o_w + o_l) is less than -log of p_w (1 - p_l) by this much
    def less(g: int, w: int, l_: int) -> float:
        p_w, p_l = (math.exp(mean_logp(inputs, g, k)) for k in (w, l_))
        return math.log(p_w * (1 - p_l) + p_l * (1 - p_w))

    expected = asft(inputs).losses + mean_over_pairs(inputs, less)
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-12)
    assert (losses <= asft(inputs).losses).all()


@pytest.mark.parametrize("key", ["beta", "odds_weight", "nll_weight"])
def test_a_weight_of_0_is_refused(key: str):
    with pytest.raises(UserError, match=rf"^objective\.{key} should be greater than 0, got 0\.$"):
        build({"name": "orpo", key: 0})
