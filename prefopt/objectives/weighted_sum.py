"""Weighted sum: several objectives on the same groups, each with its own denominator.

Paper: a form in wide use, such as DPO + NLL of Pang et al., 2024, arxiv.org/abs/2404.19733
Formula: sum over terms of weight * loss of the term

Each term is averaged over the groups that *it* counts, so a group that one term ignores does not
dilute the other. A group is counted if any term counts it, and a term's metrics are defined where
that term counts it. The rewards, and with them the logged accuracies and margins, are those of the
first term.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field, PrivateAttr, model_validator

from prefopt.errors import UserError
from prefopt.objectives.base import Needs, Objective, build, register
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term


class _Trait:
    """A trait that the terms decide; of the class itself it has the base's value."""

    def __init__(self, name: str, strictest_first: Sequence[Any]) -> None:
        self.name = name
        self.strictest_first = strictest_first

    def __get__(self, owner: "WeightedSum | None", cls: type) -> Any:
        if owner is None:
            return self.strictest_first[-1]
        asked = [getattr(term, self.name) for term in owner.objectives]
        return next(value for value in self.strictest_first if value in asked)


@register("weighted_sum")
class WeightedSum(Objective):
    """Several objectives at once."""

    needs_reference: ClassVar[bool] = cast(bool, _Trait("needs_reference", (True, False)))
    needs: ClassVar[Needs] = cast(
        Needs, _Trait("needs", ("labels", "graded", "preferred_pairs", "responses"))
    )

    terms: list[dict[str, Any]] = Field(min_length=1)
    """Objectives with a `weight` each (default 1), such as {name: nll, of: best, weight: 0.2}."""

    _objectives: tuple[Objective, ...] = PrivateAttr()
    _weights: tuple[float, ...] = PrivateAttr()

    @model_validator(mode="after")
    def _build_terms(self, info: Any) -> "WeightedSum":
        weights, objectives = [], []
        for i, term in enumerate(self.terms):
            where = f"{(info.context or {}).get('where', 'objective')}.terms.{i}"
            parameters = dict(term)
            weight = parameters.pop("weight", 1.0)
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not 0 < weight < math.inf:
                raise UserError(f"{where}.weight must be a finite number above 0, got {weight!r}.")
            weights.append(float(weight))
            objectives.append(build(parameters, where=where))
        self._weights, self._objectives = tuple(weights), tuple(objectives)
        return self

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The terms' objectives, in order."""
        return self._objectives

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: the weighted sum of the terms' losses."""
        outputs = [objective(inputs) for objective in self._objectives]
        names = [objective.name for objective in self._objectives]
        terms: dict[str, Term] = {}
        metrics: dict[str, torch.Tensor] = {}
        for i, (name, weight, output) in enumerate(zip(names, self._weights, outputs, strict=True)):
            label = name if names.count(name) == 1 else f"{i}.{name}"
            for key, value in {**output.metrics, "loss": output.losses.detach()}.items():
                metrics[f"{label}/{key}"] = value.masked_fill(~output.counted, math.nan)
            for key, term in output.all_terms().items():
                terms[f"{i}.{name}.{key}"] = Term(
                    losses=term.losses, weight=term.weight, coefficient=weight * term.coefficient
                )
        return ObjectiveOutput(
            losses=torch.stack(
                [w * out.losses for w, out in zip(self._weights, outputs, strict=True)]
            ).sum(dim=0),
            counted=torch.stack([output.counted for output in outputs]).any(dim=0),
            rewards=outputs[0].rewards,
            metrics=metrics,
            terms=terms,
        )
