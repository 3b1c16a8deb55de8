"""ASFT: likelihood of what is preferred and unlikelihood of the rest, by hand."""

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
    {"name": "asft"},
    {"name": "asft", "beta": 0.3, "nll_weight": None},
    {"name": "asft", "beta": 2.0, "odds_weight": 0.2, "nll_weight": 0.5},
]


def odds(inputs: ObjectiveInputs, g: int, k: int) -> float:
    p = math.exp(mean_logp(inputs, g, k))
    return mean_logp(inputs, g, k) - math.log1p(-p)


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The loss itself: the reference says nothing here."""

    def cost(g: int, w: int, l_: int) -> float:
        preferred = softplus(-objective.beta * odds(inputs, g, w))
        rejected = softplus(objective.beta * odds(inputs, g, l_))
        nll = -(objective.nll_weight or 0.0) * mean_logp(inputs, g, w)
        return nll + objective.odds_weight * (preferred + rejected)

    return mean_over_pairs(inputs, cost)


def test_with_beta_1_it_is_likelihood_and_unlikelihood():
    objective = build({"name": "asft", "odds_weight": 0.5})
    # Mean tokens of probability 0.8 over 5 tokens and of 0.25 over 2
    logps = [[5 * math.log(0.8), 2 * math.log(0.25)]]
    inputs = inputs_of(logps, None, [[1, 0]], num_tokens=[[5, 2]])

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.item() == pytest.approx(-1.5 * math.log(0.8) - 0.5 * math.log(0.75), rel=1e-12)
    # c_w = -(1 + lambda) / n_w, c_l = lambda p_l / ((1 - p_l) n_l)
    expected = [-1.5 / 5, 0.5 * 0.25 / 0.75 / 2]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-12)


def test_beta_multiplies_the_log_odds_and_null_leaves_out_the_nll():
    objective = build({"name": "asft", "beta": 0.5, "nll_weight": None})
    # Odds 4 and 1/9: their square roots are 2 and 1/3
    inputs = inputs_of([[math.log(0.8), math.log(0.1)]], None, [[1, 0]])

    output = objective(inputs)

    # sigmoid(log 2) = 2/3, sigmoid(-log(1/3)) = 3/4
    assert output.losses.item() == pytest.approx(-math.log(2 / 3) - math.log(3 / 4), rel=1e-12)
    assert output.rewards.tolist()[0] == pytest.approx([math.log(2), -math.log(3)], rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_a_list_is_the_mean_over_its_preferred_pairs(num_slots: int):
    objective = build({"name": "asft", "beta": 0.7, "odds_weight": 0.4, "nll_weight": 0.3})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    def slopes(g: int, w: int, l_: int) -> tuple[float, float]:
        scales = [
            0.4 * 0.7 / (1 - math.exp(mean_logp(inputs, g, k))) / length(inputs, g, k)
            for k in (w, l_)
        ]
        c_w = -scales[0] * sigmoid(-0.7 * odds(inputs, g, w)) - 0.3 / length(inputs, g, w)
        return c_w, scales[1] * sigmoid(0.7 * odds(inputs, g, l_))

    expected = value_at_reference(objective, inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        gradient, gradient_over_pairs(inputs, slopes), rtol=1e-11, atol=1e-14
    )


def test_a_preferred_response_of_minus_10000_nats_costs_twice_that():
    inputs = inputs_of([[-1e4, -1e4]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(build({"name": "asft"}), inputs)

    # The rejected one is as unlikely as can be, and costs nothing.
    assert losses.item() == pytest.approx(2e4, rel=1e-6)
    assert gradient.tolist() == [[-2.0, 0.0]]


@pytest.mark.parametrize("logp", [-1e-8, -0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_rejected_response_known_by_heart_is_finite_and_lowered(logp: float, dtype: torch.dtype):
    inputs = inputs_of([[-2.0, logp]], None, [[1, 0]], dtype=dtype)

    losses, gradient = losses_and_gradient(build({"name": "asft"}), inputs)

    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] < 0 < gradient[0, 1]


@pytest.mark.parametrize("key", ["beta", "odds_weight", "nll_weight"])
def test_a_weight_of_0_is_refused(key: str):
    with pytest.raises(UserError, match=rf"^objective\.{key} should be greater than 0, got 0\.$"):
        build({"name": "asft", key: 0})
