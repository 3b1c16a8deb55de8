"""Cringe against its formula by hand, and against the authors' code (tests/golden)."""

import json
import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs, TokenInputs
from tests.objectives.helpers import GOLDEN, draw, inputs_of, loss_gradient, step_loss
from tests.objectives.tokens import (
    contrast,
    softplus,
    token_inputs_of,
    tokens_of,
    with_token_fields,
)

CASES = [
    {"name": "cringe"},
    {"name": "cringe", "alpha": 0.4, "k": 5},
    {"name": "cringe", "alpha": 3.0, "k": 16},
]
AUTHORS = json.loads((GOLDEN / "cringe_tokens.json").read_text(encoding="utf-8"))


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """Sums over tokens, one by one: the reference says nothing here."""
    alpha, k = (objective.model_dump()[name] for name in ("alpha", "k"))
    tokens = inputs.token_inputs()
    values = [[0.0] * inputs.where.shape[1] for _ in inputs.where]
    for g, row in enumerate(values):
        for slot in range(len(row)):
            for t in tokens_of(inputs, g, slot):
                is_good = inputs.scores[g, slot] == 1
                likelihood = -tokens.policy_logps[t].item()
                row[slot] += likelihood if is_good else alpha * contrast(tokens, t, k)
    return torch.tensor([sum(row) for row in values], dtype=inputs.policy_logps.dtype)


def good_and_bad() -> ObjectiveInputs:
    """A good response of two tokens and a bad one of three, whose tokens have the id 7."""
    _, inputs = token_inputs_of([[[-1.0, -2.0], [-1.5, -0.1, -4.0]]], [[1, 0]])
    return with_token_fields(
        inputs,
        labels=[7] * 5,
        # Nothing is given for the good tokens. The first bad one is not among the likeliest two,
        # the second is the likeliest, the third comes second.
        top_ids=[[0, 0], [0, 0], [3, 4], [7, 5], [6, 7]],
        top_logps=[[0.0, 0.0], [0.0, 0.0], [-0.5, -1.2], [-0.1, -3.0], [-0.2, -4.0]],
        noise=[0.0, 0.3, 0.5, 0.9, 0.99],
    )


def test_good_tokens_cost_their_likelihood_and_bad_ones_a_contrast():
    objective = build({"name": "cringe", "alpha": 0.5})

    output = objective(good_and_bad())

    # Alternatives: id 3 at -0.5, id 5 at -3, id 6 at -0.2
    contrasts = softplus(-1.5 + 0.5) + softplus(-0.1 + 3.0) + softplus(-4.0 + 0.2)
    assert output.losses.tolist() == pytest.approx([3.0 + 0.5 * contrasts], rel=1e-12)
    assert output.all_terms()["cringe"].weight.tolist() == [5.0]
    assert output.rewards.tolist()[0] == pytest.approx([-3.0, -5.6])


@pytest.mark.parametrize("case", AUTHORS, ids=["vocabulary-12", "vocabulary-30"])
@pytest.mark.parametrize(
    ("dtype", "loss_tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-9, 1e-8), (torch.float32, 1e-5, 1e-5)],
    ids=["float64", "float32"],
)
def test_losses_and_gradients_are_those_of_the_published_code(
    case: dict[str, object],
    dtype: torch.dtype,
    loss_tolerance: float,
    gradient_tolerance: float,
):
    objective = build({"name": "cringe", "k": case["k"]})
    logits = torch.tensor(case["logits"], dtype=dtype, requires_grad=True)
    labels, num_tokens = torch.tensor(case["labels"]), len(case["labels"])
    distribution = logits.log_softmax(dim=1)
    top_logps, top_ids = distribution.topk(case["k"] + 1, dim=1)
    logps = distribution.gather(1, labels.unsqueeze(1))
    # Each token is a response of its own, since the published code labels tokens.
    inputs = ObjectiveInputs(
        policy_logps=logps,
        reference_logps=None,
        num_tokens=torch.ones(num_tokens, 1, dtype=torch.int64),
        scores=torch.tensor(case["is_positive"], dtype=dtype).unsqueeze(1),
        where=torch.ones(num_tokens, 1, dtype=torch.bool),
        tokens=TokenInputs(
            policy_logps=logps.squeeze(1),
            reference_logps=None,
            response=torch.arange(num_tokens),
            labels=labels,
            top_logps=top_logps,
            top_ids=top_ids,
            noise=torch.full((num_tokens,), 0.5, dtype=dtype),
        ),
    )

    losses = objective(inputs).losses

    expected = torch.tensor(case["token_losses"], dtype=dtype)
    torch.testing.assert_close(losses, expected, rtol=loss_tolerance, atol=0)
    torch.testing.assert_close(
        loss_gradient(losses, logits),
        torch.tensor(case["grad_logits"], dtype=dtype),
        rtol=gradient_tolerance,
        atol=gradient_tolerance,
    )


def test_the_denominator_is_all_tokens_of_the_step():
    objective = build({"name": "cringe"})
    both = good_and_bad()
    _, good = token_inputs_of([[[-1.0, -2.0, -3.0, -6.0]]], [[1]])
    good = with_token_fields(
        good, top_logps=[[0.0, 0.0]] * 4, top_ids=[[0, 0]] * 4, noise=[0.0] * 4
    )

    loss = step_loss(objective, [both, good])

    expected = (objective(both).losses.item() + 12.0) / (5 + 4)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_pair_gives_the_update_of_its_two_responses_alone():
    objective = build({"name": "cringe", "k": 2})
    per_token = {
        "labels": [1, 2, 3],
        "top_ids": [[4, 5, 6], [4, 2, 6], [3, 5, 6]],
        "top_logps": [[-1.0, -1.5, -2.0], [-0.5, -2.0, -3.0], [-0.1, -4.0, -4.1]],
        "noise": [0.1, 0.95, 0.6],
    }
    policy = [[-3.0], [-2.0, -0.1]]

    def part(values: dict[str, list[object]], first: int, last: int) -> dict[str, list[object]]:
        return {name: rows[first:last] for name, rows in values.items()}

    together = with_token_fields(token_inputs_of([policy], [[1, 0]])[1], **per_token)
    apart = [
        with_token_fields(token_inputs_of([policy[:1]], [[1]])[1], **part(per_token, 0, 1)),
        with_token_fields(token_inputs_of([policy[1:]], [[0]])[1], **part(per_token, 1, 3)),
    ]

    # Noise 0.95 and 0.6 pass the shares of the first ones: e^-0.5 / (e^-0.5 + e^-3) = 0.92, and
    # e^-4 / (e^-4 + e^-4.1) = 0.52. So alternatives are at -3 and -4.1.
    expected = (3.0 + softplus(-2.0 + 3.0) + softplus(-0.1 + 4.1)) / 3
    assert step_loss(objective, [together]).item() == pytest.approx(expected, rel=1e-12)
    assert step_loss(objective, apart).item() == pytest.approx(expected, rel=1e-12)


def test_only_bad_responses_ask_for_alternatives():
    objective = build({"name": "cringe", "k": 4})
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    where = torch.tensor([[True, True, False], [True, False, False]])

    asked = objective.responses_with_statistics(scores, where)

    assert asked.tolist() == [[False, True, False], [True, False, False]]
    assert objective.num_top_logits == 5


@pytest.mark.parametrize("num_slots", [1, 3, 16])
@pytest.mark.parametrize("section", CASES, ids=str)
def test_what_nobody_asked_for_may_be_0_and_more_columns_than_asked_for_are_ignored(
    section: dict[str, object], num_slots: int
):
    objective = build(section)
    inputs = draw(objective, seed=num_slots, num_groups=7, num_slots=num_slots).inputs
    tokens = inputs.token_inputs()
    asked = objective.responses_with_statistics(inputs.scores, inputs.where)
    needed = asked.flatten()[tokens.response].unsqueeze(1)
    wide_logps = torch.nn.functional.pad(tokens.top_logps, (0, 3), value=-0.1)
    sparse = with_token_fields(
        inputs,
        top_logps=torch.where(needed, wide_logps, 0.0),
        top_ids=torch.where(needed, torch.nn.functional.pad(tokens.top_ids, (0, 3)), 0),
    )

    losses = objective(sparse).losses

    expected = value_at_reference(objective, inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_tokens_10000_nats_apart_stay_finite(k: int):
    objective = build({"name": "cringe", "k": k})
    leaf, inputs = token_inputs_of([[[-1e4], [0.0, -1e4]]], [[1, 0]], dtype=torch.float32)
    inputs = with_token_fields(
        inputs,
        dtype=torch.float32,
        labels=[9, 9, 9],
        top_logps=[[0.0] * (k + 1), [0.0] + [-1e4] * k, [0.0] + [-1e4] * k],
        top_ids=[[0] * (k + 1), [9, *range(k)], list(range(k + 1))],
        noise=[0.5, 0.5, 0.5],
    )

    losses = objective(inputs).losses

    # 10000 for the good token, 10000 for the likely bad one, nothing for the unlikely one
    assert losses.tolist() == [2e4]
    assert loss_gradient(losses, leaf).tolist() == [-1.0, 1.0, 0.0]


def test_good_responses_alone_cost_their_likelihood_per_token():
    objective = build({"name": "cringe"})
    _, inputs = token_inputs_of([[[-1.0, -2.0], [-6.0]]], [[1, 1]])
    inputs = with_token_fields(
        inputs, top_logps=[[0.0, 0.0]] * 3, top_ids=[[0, 0]] * 3, noise=[0.0] * 3
    )
    nll = build({"name": "nll", "of": "all", "reduction": "token_mean"})
    plain = inputs_of([[-3.0, -6.0]], None, [[1, 1]], num_tokens=[[2, 1]])

    assert step_loss(objective, [inputs]).item() == pytest.approx(9 / 3, rel=1e-12)
    assert step_loss(nll, [plain]).item() == pytest.approx(9 / 3, rel=1e-12)


def test_a_bad_token_as_likely_as_its_alternative_costs_log_2():
    _, inputs = token_inputs_of([[[-1.0]]], [[0]])
    inputs = with_token_fields(
        inputs, labels=[5], top_logps=[[-1.0, -1.0]], top_ids=[[5, 6]], noise=[0.0]
    )

    assert build({"name": "cringe"})(inputs).losses.tolist() == pytest.approx([math.log(2)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": 0}, r"^objective\.alpha should be greater than 0, got 0\.$"),
        ({"k": 0}, r"^objective\.k should be greater than or equal to 1, got 0\.$"),
        ({"k": 1.5}, r"^objective\.k should be .*, got 1\.5\."),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "cringe", **wrong})
