"""What one rank computed of each group of a step, for steps that need a second look."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from prefopt.types import ObjectiveInputs, ObjectiveOutput

Group = dict[str, Any]
"""A group in plain numbers: `record`, `process`, `loss`, `terms` where the loss has several, and
`responses`, each with `policy_logp`, `reference_logp` if there is a reference, `num_tokens` and
`score`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    """G groups that an objective saw at once."""

    ids: tuple[str, ...]
    losses: Tensor
    terms: Mapping[str, Tensor]
    responses: Mapping[str, Tensor]
    where: Tensor

    def groups(self) -> list[Group]:
        losses, where = self.losses.tolist(), self.where.tolist()
        terms = {name: values.tolist() for name, values in self.terms.items()}
        columns = {name: values.tolist() for name, values in self.responses.items()}
        return [
            {
                "record": record,
                "process": PartialState().process_index,
                "loss": losses[g],
                "terms": {name: values[g] for name, values in terms.items()},
                "responses": [
                    {name: values[g][k] for name, values in columns.items()}
                    for k in range(len(where[g]))
                    if where[g][k]
                ],
            }
            for g, record in enumerate(self.ids)
        ]


@dataclass(slots=True)
class StepRecord:
    """This rank's groups of one step, on the device until somebody asks."""

    _scored: list[_Scored] = field(default_factory=list)

    def add(self, ids: tuple[str, ...], inputs: ObjectiveInputs, output: ObjectiveOutput) -> None:
        """Keep what is small of a micro-batch, without its graph."""
        responses = {"policy_logp": inputs.policy_logps.detach()}
        if inputs.reference_logps is not None:
            responses["reference_logp"] = inputs.reference_logps
        terms = output.terms or {}
        self._scored.append(
            _Scored(
                ids=ids,
                losses=output.losses.detach(),
                terms={name: term.losses.detach() for name, term in terms.items()},
                responses={**responses, "num_tokens": inputs.num_tokens, "score": inputs.scores},
                where=inputs.where,
            )
        )

    def gathered(self) -> list[Group]:
        """The step's groups of all ranks, on the host of each; every rank must call this."""
        mine = [group for scored in self._scored for group in scored.groups()]
        everywhere: list[Group] = gather_object(mine)
        return everywhere
