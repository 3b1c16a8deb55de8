"""Stopping a run between two steps: all processes agree on the step, save, and leave."""

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.train.checkpoint import run_folder_of
from prefopt.train.metrics import StepSums
from prefopt.train.signals import SIGNALS, Stopped, StopReason

if TYPE_CHECKING:
    from prefopt.train.trainer import PreferenceTrainer


class StopAgreement:
    """What the processes agree on about stopping, by the sums that they reduce in every step.

    A signal may reach one process only, or each at another moment. Which step is the last is
    therefore read from a sum, which is the same everywhere and costs no reduction of its own.
    """

    def __init__(self, ends_at: float | None = None) -> None:
        """Takes the time limit, by `time.monotonic`, on the process that measures it."""
        self.reason: StopReason | None = None
        self._ends_at = ends_at

    def wish(self, sums: StepSums, device: torch.device) -> None:
        """Add, for every reason to stop after this step, whether this process has it."""
        is_late = self._ends_at is not None and time.monotonic() >= self._ends_at
        mine = {SIGNALS.asked, StopReason.TIME_LIMIT if is_late else None}
        for reason in StopReason:
            # Filled on the device: a copy from the host could wait for it.
            wished = torch.full((), float(reason in mine), device=device)
            sums.add(f"stop/{reason.name}", wished)

    def agree(self, sums: dict[str, float]) -> None:
        """Take the sums over all processes, which all of them read, out of those of the step."""
        wished = {reason: sums.pop(f"stop/{reason.name}") > 0 for reason in StopReason}
        self.reason = next((reason for reason in StopReason if wished[reason]), None)


class StopBetweenSteps(TrainerCallback):
    """Saves and leaves before the next step begins, once that is agreed.

    By then all that belongs to the step before has happened: its log line, its evaluation and,
    after the last step of an epoch, what the end of the epoch brings. A run whose last step is
    behind it, or that has stopped early, begins no next step and ends as it would have.
    """

    def __init__(self, trainer: "PreferenceTrainer") -> None:
        """Takes the trainer that saves."""
        self._trainer = trainer
        self._saved_step: int | None = None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember what needs no second checkpoint."""
        self._saved_step = state.global_step

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop here after the last step of an epoch: the next one would draw random numbers."""
        self._stop_if_agreed(args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop here, or begin a step, which a signal no longer breaks off."""
        self._stop_if_agreed(args, state)
        SIGNALS.keep()

    def _stop_if_agreed(self, args: TrainingArguments, state: TrainerState) -> None:
        reason = self._trainer.stop.reason
        if reason is None:
            return
        if self._saved_step != state.global_step:
            self._trainer._save_checkpoint(self._trainer.model_wrapped, None)
        checkpoint = run_folder_of(args) / f"checkpoint-{state.global_step}"
        way_on = "The same command goes on"
        if args.save_only_model:
            way_on = "It holds the model alone, by training.save_only_model"
        raise Stopped(
            reason,
            f"by {reason.value} after step {state.global_step}, saved in {checkpoint}. {way_on}.",
            has_saved=True,
        )
