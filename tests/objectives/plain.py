"""Groups as plain Python numbers, for tests that work a loss out in loops."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from torch import Tensor

from prefopt.objectives import Objective
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import losses_and_gradient


@dataclass(frozen=True, kw_only=True)
class Group:
    """The used slots of one group, in order."""

    slots: list[int]
    logps: list[float]
    references: list[float]
    num_tokens: list[int]
    scores: list[float]

    def rewards(self, beta: float) -> list[float]:
        return [beta * (p - r) for p, r in zip(self.logps, self.references, strict=True)]

    def means(self) -> list[float]:
        return [p / n for p, n in zip(self.logps, self.num_tokens, strict=True)]

    def pairs(self) -> list[tuple[int, int]]:
        """All (i, j) with score_i > score_j."""
        every = range(len(self.scores))
        return [(i, j) for i in every for j in every if self.scores[i] > self.scores[j]]


def groups_of(inputs: ObjectiveInputs) -> Iterator[Group]:
    """The groups of some inputs; an objective without a reference gets zeros for it."""
    references = inputs.reference_logps
    for g in range(inputs.where.shape[0]):
        slots = [k for k, used in enumerate(inputs.where[g].tolist()) if used]

        def used(values: Tensor | None, g: int = g, slots: Sequence[int] = slots) -> list[float]:
            return [0.0 if values is None else values[g, k].item() for k in slots]

        yield Group(
            slots=slots,
            logps=used(inputs.policy_logps),
            references=used(references),
            num_tokens=[int(n) for n in used(inputs.num_tokens)],
            scores=used(inputs.scores),
        )


def assert_costs(
    objective: Objective,
    inputs: ObjectiveInputs,
    cost: Callable[[Group], float],
    slopes: Callable[[Group], list[float]] | None = None,
) -> None:
    """Every group's loss, and the gradient in its used slots, are what the loops say."""
    losses, gradient = losses_and_gradient(objective, inputs)
    for g, group in enumerate(groups_of(inputs)):
        assert losses[g].item() == pytest.approx(cost(group), rel=1e-9, abs=1e-12)
        if slopes is not None:
            got = [gradient[g, k].item() for k in group.slots]
            assert got == pytest.approx(slopes(group), rel=1e-9, abs=1e-12)
