"""NLL: which responses it selects, and over what it takes the mean."""

import pytest
import torch
from torch import Tensor

from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import (
    inputs_of,
    losses_and_gradient,
    one_by_one,
    step_loss,
)

CASES = [
    {"name": "nll"},
    {"name": "nll", "of": "best", "reduction": "sequence_sum"},
    {"name": "nll", "of": "all", "reduction": "token_mean"},
    {"name": "nll", "of": "preferred", "reduction": "token_mean"},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The negative log-probs of the selected responses: the reference says nothing here."""
    of, reduction = (objective.model_dump()[key] for key in ("of", "reduction"))
    values = []
    for g in range(inputs.where.shape[0]):
        slots = [k for k, used in enumerate(inputs.where[g].tolist()) if used]
        scores = {k: inputs.scores[g, k].item() for k in slots}
        threshold = 0.0 if len(slots) == 1 else min(scores.values(), default=0.0)
        selected = {
            "all": slots,
            "best": [k for k in slots if scores[k] == max(scores.values())],
            "preferred": [k for k in slots if scores[k] > threshold],
        }[of]
        costs = [-inputs.policy_logps[g, k].item() for k in selected]
        if reduction == "sequence_mean":
            costs = [c / int(inputs.num_tokens[g, k]) for c, k in zip(costs, selected, strict=True)]
        divisor = 1 if reduction == "token_mean" else max(1, len(selected))
        values.append(sum(costs) / divisor)
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def selected(section: dict[str, object], scores: list[list[float]]) -> list[bool]:
    """Which responses have a gradient."""
    logps = [[-1.0] * len(scores[0])]
    _, gradient = losses_and_gradient(build(section), inputs_of(logps, None, scores))
    return (gradient[0] != 0).tolist()


def test_a_response_costs_its_mean_negative_log_prob():
    objective = build({"name": "nll"})
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[4, 10]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # 10 / 4, slope -1 / 4; the rejected response has no part in it
    assert losses.tolist() == [2.5]
    assert gradient.tolist() == [[-0.25, 0.0]]


def test_rewards_are_log_probs():
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[4, 10]])

    assert build({"name": "nll"})(inputs).rewards.tolist() == [[-10.0, -30.0]]


def test_responses_of_a_group_are_averaged_before_groups():
    objective = build({"name": "nll", "of": "all"})
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[4, 10]])

    # (10 / 4 + 30 / 10) / 2 = 2.75
    assert objective(inputs).losses.tolist() == [2.75]


def test_sequence_sum_does_not_divide_by_tokens():
    objective = build({"name": "nll", "of": "all", "reduction": "sequence_sum"})
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[4, 10]])

    # (10 + 30) / 2
    assert objective(inputs).losses.tolist() == [20.0]


def test_token_mean_divides_by_the_selected_tokens_of_the_whole_step():
    objective = build({"name": "nll", "reduction": "token_mean"})
    inputs = inputs_of(
        [[-10.0, -30.0], [-8.0, -1.0], [-5.0, -5.0]],
        None,
        [[1, 0], [0, 1], [1, 1]],
        num_tokens=[[4, 10], [7, 2], [100, 100]],
    )

    whole = step_loss(objective, [inputs])
    split = step_loss(objective, one_by_one(inputs))

    # Selected: 10 nats over 4 tokens and 1 nat over 2; the tied group has none. 11 / 6
    assert whole.item() == pytest.approx(11 / 6, rel=1e-12)
    assert split.item() == pytest.approx(11 / 6, rel=1e-12)


def test_preferred_are_those_above_another_one():
    assert selected({"name": "nll"}, [[2, 1, 0, 0]]) == [True, True, False, False]
    assert selected({"name": "nll"}, [[1, 1]]) == [False, False]


def test_best_are_all_that_share_the_top():
    section = {"name": "nll", "of": "best"}

    assert selected(section, [[2, 1, 2, 0]]) == [True, False, True, False]
    assert selected(section, [[1, 1]]) == [True, True]


def test_all_are_all():
    assert selected({"name": "nll", "of": "all"}, [[2, 1, 0]]) == [True, True, True]


@pytest.mark.parametrize(
    ("of", "score", "is_selected"),
    [
        ("preferred", 1, True),
        ("preferred", 0, False),
        ("preferred", -1, False),
        ("best", 0, True),
        ("all", 0, True),
    ],
)
def test_a_response_alone_is_preferred_if_its_score_is_above_0(
    of: str, score: int, is_selected: bool
):
    objective = build({"name": "nll", "of": of})
    inputs = inputs_of([[-6.0]], None, [[score]], num_tokens=[[3]])

    output = objective(inputs)

    assert output.counted.tolist() == [is_selected]
    assert output.losses.tolist() == [2.0 if is_selected else 0.0]


def test_a_response_of_10000_nats_costs_10000_nats():
    objective = build({"name": "nll", "reduction": "sequence_sum"})
    inputs = inputs_of([[-1e4, -1.0]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [1e4]
    assert gradient.tolist() == [[-1.0, 0.0]]
