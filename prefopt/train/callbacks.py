"""What happens around a run besides its steps."""

import json
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.train.checkpoint import METRICS_FILE, run_folder_of
from prefopt.train.durable import failed_writes_are_one_line


class MetricsFile(TrainerCallback):
    """Appends every log line to metrics.jsonl in the run's folder, on the first process."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line at once, so that a killed run loses none."""
        if state.is_world_process_zero and logs:
            line = json.dumps({"step": state.global_step, **logs})
            path = run_folder_of(args) / METRICS_FILE
            with failed_writes_are_one_line(path), path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


class LogLastStep(TrainerCallback):
    """Logs the last step also where `logging_steps` does not divide it."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask for a log line."""
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask for one also where training stops early; no step is logged twice."""
        if control.should_training_stop:
            control.should_log = True
