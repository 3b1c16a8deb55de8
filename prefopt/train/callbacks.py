"""What happens around a run besides its steps."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.train.checkpoint import METRICS_FILE


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
            with (Path(args.output_dir) / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
