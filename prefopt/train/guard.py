"""Steps whose numbers are not finite: never learned from, written down, and left out if allowed."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from prefopt.errors import UserError
from prefopt.train.durable import write_whole
from prefopt.train.metrics import LogWindow
from prefopt.train.run_folder import installed_versions
from prefopt.train.step_record import Group, StepRecord

# Records that a line names.
_NUM_NAMED = 8


class NonFiniteLossError(UserError):
    """A loss or gradient is NaN or infinite; nothing was updated with it."""


class StepGuard:
    """Stops a run at a step that is not finite, or allows it to be left out so many times."""

    def __init__(self, run_folder: Path, *, max_skipped: int, say: Callable[[str], None]) -> None:
        """Guards one run.

        Args:
            run_folder: where steps that are not finite are written down.
            max_skipped: how many of them the whole run may leave out.
            say: prints a line on the first process.
        """
        self._run_folder = run_folder
        self._max_skipped = max_skipped
        self.say = say

    def leave_out(
        self,
        step: int,
        record: StepRecord,
        window: LogWindow,
        *,
        is_loss_finite: bool,
        grad_norm: float | None,
    ) -> None:
        """Write a step down that must not be learned from; every rank must call this.

        Args:
            step: its number, from 1.
            record: what this rank computed of it.
            window: counts the steps that were left out.
            is_loss_finite: False if the loss of any group is not, True if it is the gradient.
            grad_norm: over all parameters; None if it is not known yet.

        Raises:
            NonFiniteLossError: if the run may not leave it out.
        """
        groups = record.gathered()
        all_records = _named([group["record"] for group in groups])
        what = (
            f"the gradient norm is {grad_norm} although the loss is finite, records: {all_records}"
            if is_loss_finite
            else f"the loss is not finite, by {_named(_not_finite(groups)) or all_records}"
        )
        where = self._write(step, groups, grad_norm)
        if window.num_skipped < self._max_skipped:
            window.num_skipped += 1
            self.say(
                f"step {step} is left out, {window.num_skipped} of at most {self._max_skipped}: "
                f"{what}. {where}."
            )
            return
        used = f"Steps left out before: {window.num_skipped}. " if window.num_skipped else ""
        raise NonFiniteLossError(
            f"step {step}: {what}; nothing was updated. {used}{where}. Look at the records with "
            "prefopt validate, or lower training.learning_rate."
        )

    def _write(self, step: int, groups: Sequence[Group], grad_norm: float | None) -> str:
        """Write the step down on the first process, whole or not at all, and say where it is."""
        file = self._run_folder / f"non_finite-step-{step}.json"
        if not PartialState().is_main_process:
            return f"Its numbers are in {file}"
        content = {
            "about": "A step that was not learned from. NaN and infinite numbers are texts here: "
            "'NaN', 'Infinity', '-Infinity'. Log-probs are sums over a response, in nats.",
            "step": step,
            "grad_norm": grad_norm,
            "versions": installed_versions(),
            "groups": groups,
        }
        try:
            write_whole(file, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")
        except OSError as error:
            # The line that follows is what matters, also on a full disk.
            return f"Its numbers could not be written to {file}: {error.strerror}"
        return f"Its numbers are in {file}"


def hold_update(accelerator: Accelerator, optimizer: Any, *, is_left_out: bool) -> None:
    """Whether what the Trainer does next leaves optimiser, its state and the schedule alone.

    DeepSpeed's engine decides this itself, before the Trainer hears of a step.

    Args:
        accelerator: without DeepSpeed.
        optimizer: the Trainer's, which the accelerator has wrapped.
        is_left_out: False lets them move, as they do otherwise.
    """
    accelerator.gradient_state._set_sync_gradients(not is_left_out)
    optimizer._is_overflow = is_left_out
    assert accelerator.optimizer_step_was_skipped == is_left_out


def _not_finite(groups: Sequence[Group]) -> list[str]:
    return [
        f"{group['record']} ({group['loss']})"
        for group in groups
        if not all(map(math.isfinite, (group["loss"], *group["terms"].values())))
    ]


def _named(records: Sequence[str]) -> str:
    more = f" and {len(records) - _NUM_NAMED} more" if len(records) > _NUM_NAMED else ""
    return ", ".join(records[:_NUM_NAMED]) + more


def _plain(value: Any) -> Any:
    """The same with numbers that JSON does not know as texts."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
