"""The progress report, on a terminal and in a log file, with a trainer's events played to it."""

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from prefopt.train.progress import ProgressReport

LOGS = {
    "loss": 0.512345,
    "learning_rate": 1e-5,
    "rewards/margins": 0.3126,
    "rewards/accuracies": 0.785,
    "tokens_per_second": 12345.6,
}


class Run:
    """A trainer's events without the trainer."""

    def __init__(self, folder: Path, *, is_terminal: bool, is_first: bool = True, step: int = 0):
        self.file = StringIO()
        console = Console(file=self.file, force_terminal=is_terminal, width=80, highlight=False)
        self.report = ProgressReport(console)
        self.args = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True)
        self.control = TrainerControl()
        self.state = TrainerState(global_step=step, max_steps=500, is_world_process_zero=is_first)
        self.report.on_train_begin(self.args, self.state, self.control)

    def step(self, to: int) -> None:
        self.state.global_step = to
        self.report.on_step_end(self.args, self.state, self.control)

    def log(self, **logs: float) -> None:
        self.report.on_log(self.args, self.state, self.control, logs=logs)

    def end(self) -> str:
        self.report.on_train_end(self.args, self.state, self.control)
        return self.file.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock of the report shows; a test moves them."""
    now = [1000.0]
    monkeypatch.setattr("prefopt.train.progress.monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_one_plain_line_per_event(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path, is_terminal=False)
    clock[0] += 65
    run.step(to=100)
    run.log(**LOGS)

    # 65 s for 100 steps: 260 s for the other 400.
    assert run.end() == (
        "step 100/500  loss 0.5123  margin 0.313  accuracy 78%  12.3k tokens/s  "
        "elapsed 1:05  left 4:20\n"
    )


def test_a_line_of_unlearning_shows_what_is_forgotten_and_what_is_retained(tmp_path: Path):
    run = Run(tmp_path, is_terminal=False)
    run.step(to=50)
    run.log(loss=0.1, **{"mean_logps/forget": -2.361, "mean_logps/retain": -0.0912})

    assert run.end().startswith("step 50/500  loss 0.1  forget -2.36  retain -0.0912  elapsed")


def test_a_resumed_run_measures_from_where_it_goes_on(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path, is_terminal=False, step=400)
    clock[0] += 3600
    run.step(to=450)
    run.log(loss=1.0)

    assert run.end() == "step 450/500  loss 1  elapsed 1:00:00  left 1:00:00\n"


def test_an_evaluation_gets_a_line_of_its_own(tmp_path: Path):
    run = Run(tmp_path, is_terminal=False)
    run.step(to=50)
    run.log(**{"eval_loss": 0.6, "eval_rewards/margins": -1.5, "eval_rewards/accuracies": 0.5})

    assert run.end() == "evaluation at step 50  loss 0.6  margin -1.5  accuracy 50%\n"


def test_summaries_and_other_lines_are_left_to_the_metrics_file(tmp_path: Path):
    run = Run(tmp_path, is_terminal=False)
    run.log(train_runtime=12.0, train_loss=0.5)

    assert run.end() == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_the_first_process_speaks(tmp_path: Path, is_terminal: bool):
    run = Run(tmp_path, is_terminal=is_terminal, is_first=False)
    run.step(to=10)
    run.log(**LOGS)

    assert run.end() == ""


def test_a_terminal_shows_step_numbers_and_times_on_one_line(tmp_path: Path, clock: list[float]):
    run = Run(tmp_path, is_terminal=True)
    clock[0] += 60
    run.step(to=100)
    run.log(**LOGS)

    last = last_line(run.end())
    assert re.fullmatch(
        r"train \S+ 100/500 loss 0\.5123 margin 0\.313 acc 78% 12\.3k tok/s 1:00<4:00", last
    )
    assert len(last) <= 80


def test_a_finished_bar_gives_the_cursor_back(tmp_path: Path):
    hide, show = "\x1b[?25l", "\x1b[?25h"
    run = Run(tmp_path, is_terminal=True)
    assert hide in run.file.getvalue()

    run.report.close()
    run.report.close()

    assert run.file.getvalue().count(show) == 1


def last_line(terminal: str) -> str:
    """The last line with text, without control sequences."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal).replace("\r", "\n")
    return [line.strip() for line in plain.split("\n") if line.strip()][-1]
