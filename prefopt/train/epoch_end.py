"""What belongs to the last step of an epoch, and so comes before the checkpoint of that step."""

from typing import TYPE_CHECKING, Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from prefopt.train.steps import StepDataset

if TYPE_CHECKING:
    from prefopt.train.trainer import PreferenceTrainer


class EpochEnd(TrainerCallback):
    """Keeps a checkpoint from lying between the last step of an epoch and what its end brings.

    The Trainer saves after the step and only then logs and evaluates what the epoch's end asks for:
    a run that goes on from there would never do it. So the save waits. And an end without a step,
    in a run that goes on from its last one, or in the middle of an epoch, brings nothing.
    """

    def __init__(self, trainer: "PreferenceTrainer") -> None:
        """Takes the trainer, whose other callbacks may have ended the run."""
        self._trainer = trainer
        self._first_step = 0
        self._is_save_due = False
        self._is_inside_epoch = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that stopped early takes no further step when it goes on from its end."""
        if self._has_stopped_early():
            kwargs["train_dataloader"].batch_sampler.num_steps = state.global_step

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember where it starts."""
        self._first_step = state.global_step
        self._is_save_due = False
        self._is_inside_epoch = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put off the save of the last step."""
        if self._is_last_step(state):
            self._put_off(control)

    def after_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        """Put it off also where the evaluation has just ended the run."""
        if self._is_inside_epoch and self._has_stopped_early():
            self._put_off(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save now, after logs and evaluation; ask for nothing if this is no end of an epoch."""
        self._is_inside_epoch = False
        if state.global_step == self._first_step or not self._is_last_step(state):
            control.should_log = control.should_evaluate = control.should_save = False
            control.should_training_stop |= self._has_stopped_early()
        elif self._is_save_due:
            control.should_save = True

    def _put_off(self, control: TrainerControl) -> None:
        self._is_save_due |= control.should_save
        control.should_save = False

    def _is_last_step(self, state: TrainerState) -> bool:
        dataset = self._trainer.train_dataset
        assert isinstance(dataset, StepDataset)
        is_end_of_epoch = state.global_step % dataset.plan.steps_per_epoch == 0
        is_end_of_run = state.global_step >= state.max_steps or self._has_stopped_early()
        return is_end_of_epoch or is_end_of_run

    def _has_stopped_early(self) -> bool:
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self._trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
