"""What a person sees while a run trains: a progress bar, or plain lines where no terminal is."""

import atexit
from collections.abc import Mapping
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressReport(TrainerCallback):
    """Step, loss, reward margin, accuracy, tokens/s, elapsed time and time left, on rank 0.

    Of unlearning, in place of margin and accuracy: log-probs per token of what is forgotten and
    of what is retained.

    Takes the place of the tqdm bar and the printed dictionaries of transformers.
    On a terminal these are one line that moves; elsewhere, such as in a log file or in CI, each
    logging event is one plain line. Evaluations get a line of their own in both.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Writes to standard error, so that redirected output leaves the bar on the terminal."""
        self._console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._start_time = 0.0
        self._start_step = 0

    def close(self) -> None:
        """Leave the terminal as it was, also where a run ends by an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            atexit.unregister(self.close)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; a resumed run measures from where it goes on."""
        self._start_time, self._start_step = monotonic(), state.global_step
        if not (state.is_world_process_zero and self._console.is_terminal):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TextColumn("{task.fields[times]}", style="dim", markup=False),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(
            "train", total=state.max_steps, completed=state.global_step, numbers="", times=""
        )
        self._bar.start()
        # An error skips on_train_end and would leave the terminal without a cursor.
        atexit.register(self.close)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            times = "<".join(self._times(state))
            self._bar.update(self._task, completed=state.global_step, times=times)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the numbers of a training or an evaluation line; other lines say nothing here."""
        if not state.is_world_process_zero or logs is None:
            return
        if "eval_loss" in logs:
            numbers = "  ".join(_numbers(logs, prefix="eval_"))
            self._print(f"evaluation at step {state.global_step}  {numbers}")
        elif "loss" in logs and self._bar is not None:
            self._bar.update(self._task, numbers=" ".join(_numbers(logs, short=True)))
        elif "loss" in logs:
            elapsed, left = self._times(state)
            numbers = "  ".join(_numbers(logs))
            self._print(
                f"step {state.global_step}/{state.max_steps}  {numbers}  "
                f"elapsed {elapsed}  left {left}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished bar where it is."""
        self.close()

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _times(self, state: TrainerState) -> tuple[str, str]:
        """Time since the start and until the end, at the mean pace so far."""
        elapsed = monotonic() - self._start_time
        done = state.global_step - self._start_step
        left = elapsed / done * (state.max_steps - state.global_step) if done else None
        return clock(elapsed), "?" if left is None else clock(left)


def _numbers(logs: Mapping[str, Any], prefix: str = "", *, short: bool = False) -> list[str]:
    """The metrics that a log line holds, in words; `short` fits 80 columns beside a bar."""
    accuracy, speed = ("acc", "tok/s") if short else ("accuracy", "tokens/s")
    shown = []
    if (loss := logs.get(f"{prefix}loss")) is not None:
        shown.append(f"loss {loss:.4g}")
    if (margin := logs.get(f"{prefix}rewards/margins")) is not None:
        shown.append(f"margin {margin:.3g}")
    if (share := logs.get(f"{prefix}rewards/accuracies")) is not None:
        shown.append(f"{accuracy} {share:.0%}")
    for role in ("forget", "retain"):
        if (mean := logs.get(f"{prefix}mean_logps/{role}")) is not None:
            shown.append(f"{role} {mean:.3g}")
    if (rate := logs.get(f"{prefix}tokens_per_second")) is not None:
        shown.append(f"{_thousands(rate)} {speed}")
    return shown


def _thousands(value: float) -> str:
    return f"{value:.0f}" if value < 1000 else f"{value / 1000:.1f}k"


def clock(seconds: float) -> str:
    """`2:05`, or `1:02:05` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
