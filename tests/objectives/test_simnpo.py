"""SimNPO against the form of the authors' code, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient, one_by_one, step_loss
from tests.objectives.singly import (
    labelled,
    length,
    logp,
    mean_logp,
    per_group,
    sigmoid,
    softplus,
)

CASES = [
    {"name": "simnpo"},
    {"name": "simnpo", "beta": 2.5, "gamma": 0.3, "retain": "none"},
    {"name": "simnpo", "beta": 0.5, "gamma": 1.0, "retain_weight": 8.0},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The sum of both terms before their denominators: the reference says nothing here."""
    beta, gamma = objective.beta, objective.gamma

    def cost(g: int) -> float:
        forget = [
            2 / beta * softplus(beta * (mean_logp(inputs, g, k) + gamma))
            for k in labelled(inputs, g, 0)
        ]
        retain = [-objective.retain_weight * logp(inputs, g, k) for k in labelled(inputs, g, 1)]
        return sum(forget) + (sum(retain) if objective.retain == "nll" else 0.0)

    return per_group(inputs, cost)


def test_a_forgotten_response_costs_what_the_formula_says():
    objective = build({"name": "simnpo", "beta": 2.0, "gamma": 0.5, "retain": "none"})
    inputs = inputs_of([[-10.0]], None, [[0]], num_tokens=[[5]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # lbar = -2, beta (lbar + gamma) = -3: -(2 / 2) log sigmoid(3), slope 2 / 5 sigmoid(-3)
    assert losses.item() == pytest.approx(-math.log(sigmoid(3.0)), rel=1e-12)
    assert gradient.item() == pytest.approx(2 / 5 * sigmoid(-3.0), rel=1e-12)


def test_rewards_are_beta_times_mean_log_probs():
    objective = build({"name": "simnpo", "beta": 2.0, "gamma": 0.5})
    inputs = inputs_of([[-10.0, -3.0]], None, [[0, 1]], num_tokens=[[5, 3]])

    assert objective(inputs).rewards.tolist() == [[-4.0, -2.0]]


def test_each_side_has_its_own_denominator_over_the_step():
    objective = build({"name": "simnpo", "beta": 2.0, "retain_weight": 3.0})
    inputs = inputs_of(
        [[-10.0, -30.0], [-8.0, -1.0]],
        None,
        [[0, 1], [0, 1]],
        num_tokens=[[4, 10], [8, 2]],
    )

    whole = step_loss(objective, [inputs])
    split = step_loss(objective, one_by_one(inputs))

    # Forgotten: lbar -2.5 and -1; retained: 31 nats over 12 tokens
    forget = -(math.log(sigmoid(5.0)) + math.log(sigmoid(2.0))) / 2
    assert whole.item() == pytest.approx(forget + 3 * 31 / 12, rel=1e-12)
    assert split.item() == pytest.approx(whole.item(), rel=1e-12)


def test_without_retaining_responses_of_score_1_are_not_counted():
    objective = build({"name": "simnpo", "retain": "none"})
    inputs = inputs_of([[-1.0, -2.0], [-1.0, -2.0]], None, [[1, 1], [1, 0]])

    output = objective(inputs)

    assert output.counted.tolist() == [False, True]
    assert list(output.all_terms()) == ["forget"]


def test_on_one_token_it_is_npo_with_a_reference_of_minus_gamma():
    simnpo = build({"name": "simnpo", "beta": 0.7, "gamma": 2.0})
    npo = build({"name": "npo", "beta": 0.7})
    policy, scores = [[-3.0, -9.0, -5.0]], [[0, 0, 1]]

    expected = npo(inputs_of(policy, [[-2.0] * 3], scores)).losses

    torch.testing.assert_close(simnpo(inputs_of(policy, None, scores)).losses, expected)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_every_response_counts_alone(num_slots: int):
    objective = build({"name": "simnpo", "beta": 0.2, "gamma": 0.1, "retain_weight": 0.3})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    expected = torch.zeros_like(gradient)
    for g in range(num_slots + 2):
        for k in labelled(inputs, g, 0):
            kappa = sigmoid(0.2 * (mean_logp(inputs, g, k) + 0.1))
            expected[g, k] = 2 / length(inputs, g, k) * kappa
        for k in labelled(inputs, g, 1):
            expected[g, k] = -0.3
    torch.testing.assert_close(losses, value_at_reference(objective, inputs), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_it_never_pushes_more_than_gradient_ascent_on_the_mean():
    objective = build({"name": "simnpo", "beta": 4.5, "retain": "none"})
    inputs = inputs_of([[-1e-3, -2.0, -50.0]], None, [[0, 0, 0]], num_tokens=[[5, 5, 5]])

    _, gradient = losses_and_gradient(objective, inputs)

    assert (gradient > 0).all()
    assert (gradient < 1 / 5).all()


def test_a_response_of_minus_10000_nats_is_forgotten():
    objective = build({"name": "simnpo", "retain": "none"})
    inputs = inputs_of([[-1e4]], None, [[0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [0.0]
    assert gradient.tolist() == [[0.0]]


def test_a_gamma_of_10000_nats_makes_it_gradient_ascent():
    objective = build({"name": "simnpo", "beta": 2.0, "gamma": 1e4, "retain": "none"})
    inputs = inputs_of([[-10.0]], None, [[0]], num_tokens=[[5]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # (2 / beta) beta (lbar + gamma), slope 2 / n
    assert losses.item() == pytest.approx(2 * (1e4 - 2), rel=1e-6)
    assert gradient.item() == pytest.approx(2 / 5, rel=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"gamma": -1}, r"^objective\.gamma should be greater than or equal to 0, got -1\.$"),
        ({"retain_weight": 0}, r"^objective\.retain_weight should be greater than 0, got 0\.$"),
        ({"retain": "kl"}, r"^objective\.retain should be 'none' or 'nll', got 'kl'\.$"),
        (
            {"retain": "none", "retain_weight": 2.0},
            r"^objective\.retain_weight: has no effect with retain: none\.",
        ),
    ],
)
def test_a_wrong_parameter_is_refused(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "simnpo", **section})
