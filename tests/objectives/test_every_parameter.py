"""No parameter of an objective is dead: each changes the update in every setting, or is refused."""

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build, registered
from tests.objectives.helpers import Draw, draw, draw_for, loss_gradient, select, step_loss
from tests.objectives.test_contract import module_of

# A score of 3 apart is what some objectives take for a difference.
WIDE = 6.0
MADE_OF_OTHERS = "weighted_sum"


def is_switch(annotation: Any) -> bool:
    """Whether a parameter has a few values that can all be tried."""
    return annotation is bool or bool(words(annotation)) or type(None) in get_args(annotation)


def words(annotation: Any) -> list[Any]:
    """The words that a parameter takes, also beside a number."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in words(part)]


def is_number(annotation: Any) -> bool:
    parts = {annotation, *get_args(annotation)}
    return bool(parts & {int, float}) or any(get_args(part)[:1] == (float,) for part in parts)


def values(cls: type[Objective], key: str, start: dict[str, Any]) -> list[Any]:
    """Values of a parameter that differ: all words, both truths, nothing, and two numbers."""
    field = cls.model_fields[key]
    found: list[Any] = [*words(field.annotation)]
    if field.annotation is bool:
        return [False, True]
    if type(None) in get_args(field.annotation):
        found.append(None)
    if is_number(field.annotation):
        given = start.get(key, field.default)
        number = given if isinstance(given, int | float) else 0.25
        found += [number, number + 1 if field.annotation is int else number / 2 + 0.01]
    return found


def settings(name: str, key: str) -> Iterator[dict[str, Any]]:
    """Sections without the key, one for every combination of the objective's other switches."""
    cls, start = registered()[name], module_of(name).CASES[0]
    required = {k: start[k] for k, field in cls.model_fields.items() if field.is_required()}
    fields = cls.model_fields.items()
    switches = [k for k, field in fields if k != key and is_switch(field.annotation)]
    for chosen in product(*(values(cls, k, start) for k in switches)):
        yield {"name": name, **required, **dict(zip(switches, chosen, strict=True))}


def parameters() -> list[object]:
    return [
        pytest.param(name, key, id=f"{name}-{key}")
        for name, cls in registered().items()
        if name != MADE_OF_OTHERS
        for key in cls.model_fields
    ]


def draws(objective: Objective) -> list[Draw]:
    """Groups of 1 to 4 responses, whose log-probs or scores are more or less apart."""
    usual = draw(objective, num_groups=8)
    data: dict[str, Any] = {"where": usual.inputs.where, "num_tokens": usual.inputs.num_tokens}
    scores = usual.inputs.scores
    data |= {"policy_scale": 0.01, "reference_scale": 0.01}
    near = draw_for(objective, scores=scores, **data)
    if objective.score_range is not None or objective.needs == "labels":
        return [usual, near]
    return [usual, near, draw_for(objective, scores=WIDE * scores, **data)]


def update(objective: Objective, drawn: Draw) -> Tensor:
    """Loss and gradient of a step of two micro-batches, in one row."""
    halves = [select(drawn.inputs, range(4)), select(drawn.inputs, range(4, 8))]
    other = draw(objective, seed=7, num_groups=8).inputs
    loss = step_loss(objective, halves, [select(other, range(4)), select(other, range(4, 8))])
    # Where no group counts, the loss is a plain 0.
    gradient = loss_gradient(loss + 0 * drawn.leaf.sum(), drawn.leaf)
    return torch.cat([loss.detach().reshape(1), gradient.flatten()])


def differ(objective: Objective, other: Objective) -> bool:
    """Whether some data leads the two to different updates."""
    return any(
        not torch.equal(update(objective, one), update(other, two))
        for one, two in zip(draws(objective), draws(other), strict=True)
    )


def built(section: dict[str, Any]) -> Objective | None:
    """The objective, or None where its section is refused."""
    try:
        return build(section)
    except UserError:
        return None


@pytest.mark.parametrize(("name", "key"), parameters())
def test_every_parameter_changes_the_update_in_every_setting_or_is_refused(name: str, key: str):
    cls, start = registered()[name], module_of(name).CASES[0]
    pairs = []
    for setting in settings(name, key):
        ways = [built({**setting, key: value}) for value in values(cls, key, start)]
        pairs += pairwise(way for way in ways if way is not None)

    assert pairs != []
    assert [str(one) for one, two in pairs if not differ(one, two)] == []


@pytest.mark.parametrize("name", registered())
def test_the_same_section_twice_gives_the_same_update(name: str):
    section = module_of(name).CASES[0]

    assert not differ(build(section), build(section))


@pytest.mark.parametrize("key", ["weight", "beta"])
def test_what_is_said_of_a_term_changes_the_update_of_the_sum(key: str):
    first, second = (
        build({"name": MADE_OF_OTHERS, "terms": [{"name": "dpo", key: value}, {"name": "nll"}]})
        for value in (0.5, 2.0)
    )

    assert differ(first, second)
