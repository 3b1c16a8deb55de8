"""Stopping a run whose numbers are no longer finite, with the names of the records."""

from dataclasses import dataclass, field
from typing import NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor

from prefopt.errors import UserError

# Records that an error names.
_NUM_NAMED = 8


class NonFiniteLossError(UserError):
    """A loss or gradient is NaN or infinite; nothing was updated with it."""


@dataclass(slots=True)
class StepGuard:
    """The losses of one step's groups on this rank, kept on the device until something is wrong."""

    losses: list[tuple[tuple[str, ...], Tensor]] = field(default_factory=list)
    """Record ids and unreduced losses of each micro-batch."""

    def stop_on_loss(self, step: int) -> NoReturn:
        """Name the records, of all ranks, whose loss is not finite; every rank must call this."""
        bad = [
            f"{ids[g]} ({losses[g].item()})"
            for ids, losses in self.losses
            for g in range(len(ids))
            if not torch.isfinite(losses[g])
        ]
        raise NonFiniteLossError(
            f"step {step}: the loss is not finite; nothing was updated. Records: {_named(bad)}. "
            "Look at them with prefopt validate, or lower the learning rate."
        )

    def stop_on_gradient(self, step: int, norm: float) -> NoReturn:
        """Name the records of the step; every rank must call this."""
        records = [record for ids, _ in self.losses for record in ids]
        raise NonFiniteLossError(
            f"step {step}: the gradient norm is {norm}, in a step whose loss is finite. Records of "
            f"the step: {_named(records)}. Lower training.learning_rate, or train in float32."
        )


def _named(records: list[str]) -> str:
    gathered = gather_object(records)
    more = ", ..." if len(gathered) > _NUM_NAMED else ""
    return ", ".join(gathered[:_NUM_NAMED]) + more
