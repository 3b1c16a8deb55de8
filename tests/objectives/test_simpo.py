"""SimPO against the form of the authors' code, worked out by hand."""

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
    {"name": "simpo"},
    {"name": "simpo", "beta": 2.5, "gamma": 0.3},
    {"name": "simpo", "beta": 0.5, "gamma": 0.0},
]


def margin(objective: Objective, inputs: ObjectiveInputs, g: int, w: int, l_: int) -> float:
    gap = mean_logp(inputs, g, w) - mean_logp(inputs, g, l_)
    return objective.beta * gap - objective.gamma


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The loss itself: the reference says nothing here."""
    return mean_over_pairs(inputs, lambda g, w, l_: softplus(-margin(objective, inputs, g, w, l_)))


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "simpo", "beta": 2.0, "gamma": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[5, 12]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # lbar = (-10 / 5, -30 / 12) = (-2, -2.5); m = 2 * 0.5 - 0.5 = 0.5
    assert losses.item() == pytest.approx(-math.log(sigmoid(0.5)), rel=1e-12)
    # c_w = -beta / n_w * sigmoid(-m), c_l = beta / n_l * sigmoid(-m)
    kappa = sigmoid(-0.5)
    assert gradient.tolist()[0] == pytest.approx([-2 / 5 * kappa, 2 / 12 * kappa], rel=1e-12)


def test_rewards_are_beta_times_mean_log_probs():
    objective = build({"name": "simpo", "beta": 2.0, "gamma": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[5, 12]])

    assert objective(inputs).rewards.tolist() == [[-4.0, -5.0]]


def test_a_margin_of_gamma_costs_log_2():
    objective = build({"name": "simpo", "beta": 2.0, "gamma": 3.0})
    # lbar differ by 1.5: 2 * 1.5 - 3 = 0
    inputs = inputs_of([[-4.0, -10.0]], None, [[1, 0]], num_tokens=[[4, 4]])

    assert objective(inputs).losses.item() == pytest.approx(math.log(2), rel=1e-12)


def test_without_gamma_it_is_length_normalised_dpo_with_a_reference_of_even_odds():
    simpo = build({"name": "simpo", "beta": 0.7, "gamma": 0.0})
    dpo = build({"name": "dpo", "beta": 0.7, "length_normalized": True})
    drawn = draw(simpo, num_groups=20).inputs
    nothing = [[0.0] * 4] * 20
    inputs = inputs_of(
        drawn.policy_logps.tolist(),
        nothing,
        drawn.scores.tolist(),
        num_tokens=drawn.num_tokens.tolist(),
        where=drawn.where.tolist(),
    )

    torch.testing.assert_close(simpo(inputs).losses, dpo(inputs).losses, rtol=1e-14, atol=0)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_a_list_is_the_mean_over_its_preferred_pairs(num_slots: int):
    objective = build({"name": "simpo", "beta": 0.4, "gamma": 0.2})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    def slopes(g: int, w: int, l_: int) -> tuple[float, float]:
        scale = 0.4 * sigmoid(-margin(objective, inputs, g, w, l_))
        return -scale / length(inputs, g, w), scale / length(inputs, g, l_)

    expected = value_at_reference(objective, inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        gradient, gradient_over_pairs(inputs, slopes), rtol=1e-11, atol=1e-14
    )


def test_10000_nats_per_token_behind_it_costs_beta_times_that():
    objective = build({"name": "simpo", "beta": 2.0, "gamma": 1.0})
    inputs = inputs_of([[-1e4, -1.0]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # m = 2 * -9999 - 1
    assert losses.item() == pytest.approx(19999.0, rel=1e-6)
    assert gradient.tolist() == [[-2.0, 2.0]]


def test_10000_nats_per_token_ahead_it_costs_nothing():
    objective = build({"name": "simpo", "beta": 2.0, "gamma": 1.0})
    inputs = inputs_of([[-1.0, -1e4]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [0.0]
    assert gradient.abs().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"gamma": -0.5}, r"^objective\.gamma should be greater than or equal to 0, got -0\.5\.$"),
    ],
)
def test_a_wrong_parameter_is_refused(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "simpo", **section})
