"""Every parameter of every objective changes the loss, its gradient or what it is measured by."""

import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import pytest
import torch

from prefopt.errors import UserError
from prefopt.objectives import Objective, build, registered
from tests.objectives.helpers import Draw, draw, draw_for, loss_gradient, one_by_one, step_loss

PARAMETERS = [
    pytest.param(name, key, id=f"{name}-{key}")
    for name, cls in registered().items()
    for key in cls.model_fields
]


def others(value: Any, annotation: Any) -> Iterator[Any]:
    """Values besides the one that a parameter has."""
    choices = [each for part in (annotation, *get_args(annotation)) for each in get_args(part)]
    yield from (each for each in choices if isinstance(each, str) and each != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value * 2, value / 2, value + 1, value - 1, 0.25)
    elif value is None:
        yield from (0.3, 2)
    elif isinstance(value, list | tuple):
        yield [{**dict(value[0]), "weight": 7.0}, *value[1:]]


def draw_again(drawn: Draw, objective: Objective, *, scale: float) -> Draw:
    """Other log-probs for the same data, drawn that much wider."""
    data = drawn.inputs
    return draw_for(
        objective,
        scores=data.scores,
        where=data.where,
        num_tokens=data.num_tokens,
        policy_scale=scale,
        reference_scale=scale,
    )


def outcome(objective: Objective) -> list[float]:
    """Loss, gradient and rewards of drawn data, in one micro-batch and in several."""
    found: list[float] = []
    for seed in (0, 1):
        # With wide logits some tokens are likely.
        drawn = draw_again(draw(objective, seed=seed), objective, scale=1 + 2 * seed)
        other = [draw(objective, seed=seed + 7).inputs]
        for batches in ([drawn.inputs], one_by_one(drawn.inputs)):
            matched = other if len(batches) == 1 else one_by_one(other[0])
            loss = step_loss(objective, batches, matched)
            found += [loss.item(), *loss_gradient(loss, drawn.leaf).flatten().tolist()]
        with torch.no_grad():
            output = objective(drawn.inputs)
        found += [] if output.rewards is None else output.rewards.flatten().tolist()
    return found


def differs(first: list[float], second: list[float]) -> bool:
    if len(first) != len(second):
        return True
    return not all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(("name", "key"), PARAMETERS)
def test_a_parameter_changes_what_is_learned(name: str, key: str):
    cls = registered()[name]
    for section in import_module(f"tests.objectives.test_{name}").CASES:
        objective = build(section)
        before = outcome(objective)
        for value in others(getattr(objective, key), cls.model_fields[key].annotation):
            try:
                changed = build({**section, key: value})
            except UserError:
                # Out of its range, or of no effect beside the other parameters.
                continue
            if differs(before, outcome(changed)):
                return
    pytest.fail(f"{name}.{key}: no value of it makes a difference")
