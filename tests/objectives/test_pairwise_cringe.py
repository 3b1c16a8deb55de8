"""Pairwise Cringe against its formula, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, loss_gradient
from tests.objectives.tokens import (
    contrast,
    softplus,
    token_inputs_of,
    tokens_of,
    with_token_fields,
)

NAME = "pairwise_cringe"
CASES = [
    {"name": NAME},
    {
        "name": NAME,
        "alpha": 0.5,
        "k": 4,
        "margin": 3.0,
        "temperature": 4.0,
        "detach_gate": False,
    },
    {
        "name": NAME,
        "temperature": 0.5,
        "detach_gate": False,
        "length_normalized": True,
        "ce_reduction": "sequence_sum",
    },
    {"name": NAME, "alpha": 2.0, "margin": -5.0, "cringe_reduction": "sequence_sum"},
]
# By hand: log pi = -4 over 2 tokens, and -9 over 3; contrasts with alternatives at -0.5, -1, -2.
CE = 4.0
CRINGE = softplus(-3.0 + 0.5) + softplus(-2.0 + 1.0) + softplus(-4.0 + 2.0)


def stops_gradient(objective: Objective) -> bool:
    """A detached gate is a constant."""
    return bool(objective.model_dump()["detach_gate"])


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """Sums over pairs and tokens, one by one: the reference says nothing here."""
    section = objective.model_dump()
    tokens = inputs.token_inputs()
    values = []
    for g in range(inputs.where.shape[0]):
        used = [k for k, is_used in enumerate(inputs.where[g].tolist()) if is_used]
        scores, rewards, ces, cringes = {}, {}, {}, {}
        for k in used:
            own = tokens_of(inputs, g, k)
            logp = sum(tokens.policy_logps[t].item() for t in own)
            contrasts = sum(contrast(tokens, t, section["k"]) for t in own)
            scores[k] = inputs.scores[g, k].item()
            rewards[k] = logp / len(own) if section["length_normalized"] else logp
            ces[k] = -logp / (len(own) if section["ce_reduction"] == "sequence_mean" else 1)
            is_mean = section["cringe_reduction"] == "sequence_mean"
            cringes[k] = contrasts / (len(own) if is_mean else 1)
        costs = []
        for i in used:
            for j in used:
                if scores[i] > scores[j]:
                    margin = rewards[i] - rewards[j]
                    gate = sigmoid((section["margin"] - margin) / section["temperature"])
                    costs.append(gate * (ces[i] + section["alpha"] * cringes[j]))
        values.append(sum(costs) / max(1, len(costs)))
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def sigmoid(x: float) -> float:
    return math.exp(min(x, 0.0)) / (1 + math.exp(-abs(x)))


def a_pair(scores: tuple[int, int] = (1, 0)) -> tuple[Tensor, ObjectiveInputs]:
    leaf, inputs = token_inputs_of([[[-1.0, -3.0], [-3.0, -2.0, -4.0]]], [list(scores)])
    return leaf, with_token_fields(
        inputs,
        labels=[9] * 5,
        top_logps=[[0.0, 0.0], [0.0, 0.0], [-0.5, -1.2], [-1.0, -2.0], [-2.0, -2.5]],
        top_ids=[[0, 0], [0, 0], [3, 4], [3, 9], [6, 5]],
        noise=[0.0] * 5,
    )


def test_a_pair_costs_its_cringe_loss_times_the_gate():
    _, inputs = a_pair()

    output = build({"name": NAME, "alpha": 0.5, "margin": 2.0, "temperature": 4.0})(inputs)

    # M = -4 + 9 = 5
    gate = sigmoid((2.0 - 5.0) / 4.0)
    assert output.losses.tolist() == pytest.approx([gate * (CE / 2 + 0.5 * CRINGE / 3)], rel=1e-12)
    assert output.rewards.tolist() == [[-4.0, -9.0]]


def test_the_reductions_of_both_parts_are_chosen_apart():
    _, inputs = a_pair()

    def loss(**reductions: str) -> float:
        return build({"name": NAME, "temperature": 4.0, **reductions})(inputs).losses.item()

    gate = sigmoid(-5.0 / 4.0)
    summed = "sequence_sum"
    assert loss() == pytest.approx(gate * (CE / 2 + CRINGE / 3), rel=1e-12)
    assert loss(ce_reduction=summed) == pytest.approx(gate * (CE + CRINGE / 3), rel=1e-12)
    assert loss(cringe_reduction=summed) == pytest.approx(gate * (CE / 2 + CRINGE), rel=1e-12)


def test_length_normalisation_is_of_the_gate_alone():
    _, inputs = a_pair()

    output = build({"name": NAME, "temperature": 0.5, "length_normalized": True})(inputs)

    # M = -4 / 2 + 9 / 3 = 1
    expected = sigmoid(-1.0 / 0.5) * (CE / 2 + CRINGE / 3)
    assert output.losses.tolist() == pytest.approx([expected], rel=1e-12)
    assert output.rewards.tolist() == [[-2.0, -3.0]]


@pytest.mark.parametrize("detach_gate", [True, False])
def test_the_gate_is_a_weight_and_its_own_gradient_a_choice(detach_gate: bool):
    leaf, inputs = a_pair()
    section = {"name": NAME, "temperature": 4.0, "detach_gate": detach_gate}

    losses = build(section)(inputs).losses

    # CE: -g / 2 on each good token. Contrast: g / 3 sigmoid(logp(y) - logp(s)) on each bad one.
    gate = sigmoid(-5.0 / 4.0)
    expected = [-gate / 2] * 2 + [gate / 3 * sigmoid(gap) for gap in (-2.5, -1.0, -2.0)]
    if not detach_gate:
        # d gate / d log pi(y_w) = -g (1 - g) / tau, and the opposite for y_l
        slope = (CE / 2 + CRINGE / 3) * gate * (1 - gate) / 4.0
        expected = [g - slope for g in expected[:2]] + [g + slope for g in expected[2:]]
    assert loss_gradient(losses, leaf).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_scores_say_which_response_is_preferred():
    _, inputs = a_pair((0, 1))
    inputs = with_token_fields(inputs, top_logps=[[-0.5, -1.2]] * 5, top_ids=[[3, 4]] * 5)

    losses = build({"name": NAME, "temperature": 4.0})(inputs).losses

    # M = -9 + 4 = -5; contrasts of the two tokens of the first response
    cringe = (softplus(-1.0 + 0.5) + softplus(-3.0 + 0.5)) / 2
    assert losses.tolist() == pytest.approx([sigmoid(5.0 / 4.0) * (9 / 3 + cringe)], rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_random_lists_cost_what_loops_say_without_what_nobody_asked_for(num_slots: int):
    objective = build(CASES[1])
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 1, num_slots=num_slots).inputs
    tokens = inputs.token_inputs()
    asked = objective.responses_with_statistics(inputs.scores, inputs.where)
    needed = asked.flatten()[tokens.response].unsqueeze(1)
    sparse = with_token_fields(
        inputs,
        top_logps=torch.where(needed, tokens.top_logps, 0.0),
        top_ids=torch.where(needed, tokens.top_ids, 0),
    )

    losses = objective(sparse).losses

    expected = value_at_reference(objective, inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


def test_responses_that_lose_to_another_ask_for_alternatives():
    scores = torch.tensor([[2.0, 1.0, 1.0, 9.0], [3.0, 3.0, 0.0, 0.0]])
    where = torch.tensor([[True, True, True, False], [True, True, False, False]])

    asked = build({"name": NAME, "k": 4}).responses_with_statistics(scores, where)

    assert asked.tolist() == [[False, True, True, False], [False] * 4]


@pytest.mark.parametrize("detach_gate", [True, False])
@pytest.mark.parametrize("far", ["chosen", "rejected"])
def test_a_margin_of_10000_nats_opens_or_shuts_the_gate(far: str, detach_gate: bool):
    logps = [[[-1e4], [-1.0]]] if far == "chosen" else [[[-1.0], [-1e4]]]
    leaf, inputs = token_inputs_of(logps, [[1, 0]], dtype=torch.float32)
    inputs = with_token_fields(
        inputs,
        dtype=torch.float32,
        labels=[9, 9],
        top_logps=[[-1.0, -1.0]] * 2,
        top_ids=[[3, 4]] * 2,
        noise=[0.0, 0.0],
    )

    losses = build({"name": NAME, "detach_gate": detach_gate})(inputs).losses

    # Open: 10000 + log 2, slopes -1 and sigmoid(0). Shut: nothing.
    expected = (10000 + math.log(2), [-1.0, 0.5]) if far == "chosen" else (0.0, [0.0, 0.0])
    assert losses.item() == pytest.approx(expected[0], rel=1e-6)
    assert loss_gradient(losses, leaf).tolist() == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": 0}, r"^objective\.alpha should be greater than 0, got 0\.$"),
        ({"k": 0}, r"^objective\.k should be greater than or equal to 1, got 0\.$"),
        ({"temperature": 0}, r"^objective\.temperature should be greater than 0, got 0\.$"),
        ({"ce_reduction": "mean"}, r"^objective\.ce_reduction should be 'sequence_mean' or"),
        ({"cringe_reduction": "sum"}, r"^objective\.cringe_reduction should be 'sequence_mean' or"),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": NAME, **wrong})
