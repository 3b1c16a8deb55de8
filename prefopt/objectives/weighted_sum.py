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
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives.base import Needs, Objective, build, decided_by, register
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term

_STRICTEST_FIRST: tuple[Needs, ...] = ("labels", "graded", "preferred_pairs", "responses")


def _any(trait: str) -> Any:
    return decided_by(lambda owner: any(getattr(term, trait) for term in owner.objectives))


def _strictest(terms: Sequence[Objective]) -> Needs:
    return min((term.needs for term in terms), key=_STRICTEST_FIRST.index)


def _intersection(terms: Sequence[Objective]) -> tuple[float, float] | None:
    ranges = [term.score_range for term in terms if term.score_range is not None]
    return (max(r[0] for r in ranges), min(r[1] for r in ranges)) if ranges else None


@register("weighted_sum")
class WeightedSum(Objective):
    """Several objectives at once."""

    needs: ClassVar[Needs] = decided_by(lambda owner: _strictest(owner.objectives))
    score_range: ClassVar[tuple[float, float] | None] = decided_by(
        lambda owner: _intersection(owner.objectives)
    )
    needs_reference: ClassVar[bool] = _any("needs_reference")
    needs_tokens: ClassVar[bool] = _any("needs_tokens")
    needs_token_weights: ClassVar[bool] = _any("needs_token_weights")
    num_top_logits: ClassVar[int] = decided_by(
        lambda owner: max(term.num_top_logits for term in owner.objectives)
    )
    needs_reference_distribution: ClassVar[bool] = _any("needs_reference_distribution")
    needs_diff: ClassVar[bool] = _any("needs_diff")
    couples_groups: ClassVar[bool] = _any("couples_groups")
    couples_micro_batch: ClassVar[bool] = _any("couples_micro_batch")
    mismatches_responses: ClassVar[bool] = _any("mismatches_responses")

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
        if len(self._coupled()) > 1:
            names = " and ".join(term.name for term in self._coupled())
            raise UserError(
                f"objective.terms: {names} each need statistics of the whole step, and a step "
                "gathers one set. Keep one of them."
            )
        return self

    def _coupled(self) -> list[Objective]:
        return [term for term in self._objectives if term.couples_groups]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The terms' objectives, in order."""
        return self._objectives

    def parts(self) -> tuple[Objective, ...]:
        """Those of all terms."""
        return tuple(part for term in self._objectives for part in term.parts())

    def owner_of(self, term: str) -> Objective:
        """The term's own objective, whose place begins the name."""
        number, _, rest = term.split(".", 2)
        return self._objectives[int(number)].owner_of(rest)

    def statistic(self, inputs: ObjectiveInputs) -> Float[Tensor, "G C"]:
        """That of the one term that couples groups."""
        coupled = self._coupled()
        return coupled[0].statistic(inputs) if coupled else super().statistic(inputs)

    def responses_with_statistics(
        self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
    ) -> Bool[Tensor, "G K"]:
        """Those that any term asks for."""
        asking = [
            term.responses_with_statistics(scores, where)
            for term in self._objectives
            if term.num_top_logits or term.needs_reference_distribution
        ]
        return torch.stack([torch.zeros_like(where), *asking]).any(dim=0)

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """The terms' warnings."""
        said = [term.warning(scores, where) for term in self._objectives]
        return " ".join(line for line in said if line) or None

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
