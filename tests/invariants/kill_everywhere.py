"""Kills runs on their way, goes on with them, and compares the end with that of an unbroken run.

Usage, with kill_at.c loaded before libc:

    kill_everywhere.py FOLDER train | go_on | replace FIRST STRIDE
    kill_everywhere.py FOLDER random COUNT

The first form kills at every STRIDE-th call that touches the run's folder, from the FIRST on; the
second one at random times. The last line it prints is JSON: how many kills, and what went wrong.

Every run is a fork of this process, which has imported everything and computed nothing, so that a
kill and what follows take a second or two.
"""

import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from transformers.models.llama import modeling_llama

from prefopt.commands.train import train
from prefopt.config import Recipe
from tests.support.ends import differences

WARM = (modeling_llama,)
STEPS = 3
# As a process that is not killed ends.
WELL = 0


class Runs:
    """One recipe's runs, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        # The calls below `place` are counted: whatever lies beside the run's folder, too.
        self.place = folder / "place"
        self.run = self.place / "run"
        self.straight = folder / "straight"
        self.log = folder / "log.txt"
        self.calls = folder / "calls.txt"
        self.recipe = Recipe.model_validate(
            {
                "model": {"path": str(folder / "model")},
                "data": {
                    "sources": [{"path": str(folder / "pairs.jsonl")}],
                    "evaluation": {"num_groups": 2},
                    "cache_dir": str(folder / "cache"),
                },
                "objective": {"name": "dpo"},
                "training": {
                    "output_dir": str(self.run),
                    # Two steps an epoch: the first checkpoint is inside an epoch, the second one at
                    # its end, where the evaluation belongs; a log window is open at the first.
                    "groups_per_step": 2,
                    "max_steps": STEPS,
                    "save_strategy": "steps",
                    "save_steps": 1,
                    "save_total_limit": 2,
                    "logging_steps": 2,
                    "eval_strategy": "epoch",
                    "metric_for_best_model": "eval_loss",
                    "learning_rate": 1e-2,
                },
            }
        )

    def forked(self, action: Callable[[], object], *, kill_at: int = 0, seconds: float = 0) -> int:
        """Run it in a fork, killed at a call or after a time; the signal, or the exit code."""
        child = os.fork()
        if child == 0:
            self._be_child(action, kill_at)
        if seconds:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def _be_child(self, action: Callable[[], object], kill_at: int) -> None:
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            shim = ctypes.CDLL(None)
            shim.kill_at(str(self.place).encode(), ctypes.c_long(kill_at))
            action()
            self.calls.write_text(str(shim.num_calls()))
            code = WELL
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def start(self) -> None:
        train(self.recipe)

    def go_on(self) -> None:
        train(self.recipe, resume="auto")

    def go_on_from_first(self) -> None:
        train(self.recipe, resume=str(self.run / f"checkpoint-{STEPS - 1}"))

    def replace(self) -> None:
        train(self.recipe, overwrite=True)

    def run_straight(self) -> int:
        """Leave an unbroken run in `straight`; the number of calls that it took."""
        assert self.forked(self.start) == WELL, self.log.read_text()
        shutil.copytree(self.run, self.straight)
        return int(self.calls.read_text())

    def reset(self, *, finished: bool) -> None:
        """Nothing in the place, or the run that is finished."""
        shutil.rmtree(self.place)
        self.place.mkdir()
        if finished:
            shutil.copytree(self.straight, self.run)

    def problems_at_end(self, where: str) -> list[str]:
        """Go on to the end; what is wrong then."""
        if self.forked(self.go_on) != WELL:
            return [f"{where}: {self.log.read_text()[-2000:]}"]
        left_over = [path.name for path in self.place.iterdir() if path != self.run]
        wrong = differences(self.run, self.straight) + left_over
        sys.stderr.write(f"{where}: {wrong or 'well'}\n")
        return [f"{where}: {', '.join(wrong)}"] if wrong else []


def kill_at_calls(runs: Runs, scenario: str, first: int, stride: int) -> tuple[int, list[str]]:
    """Kill a scenario at its calls, each time from the same beginning."""
    num_calls = runs.run_straight()
    actions = {"train": runs.start, "go_on": runs.go_on_from_first, "replace": runs.replace}
    num_kills, problems = 0, list[str]()
    for call in range(first, num_calls + 1, stride):
        runs.reset(finished=scenario != "train")
        ended = runs.forked(actions[scenario], kill_at=call)
        if ended == WELL:
            # This scenario takes fewer calls than the whole run.
            break
        num_kills += 1
        if ended != -signal.SIGKILL:
            problems.append(f"call {call}: {runs.log.read_text()[-2000:]}")
        problems += runs.problems_at_end(f"call {call} of {num_calls}")
    return num_kills, problems


def kill_at_random(runs: Runs, count: int) -> tuple[int, list[str]]:
    """Kill one run again and again, at random times, until it is through; so on with the next."""
    began = time.monotonic()
    runs.run_straight()
    longest = time.monotonic() - began
    generator = random.Random(0)
    num_kills, problems = 0, list[str]()
    runs.reset(finished=False)
    while num_kills < count:
        seconds = generator.uniform(0.1, longest)
        if runs.forked(runs.go_on, seconds=seconds) == -signal.SIGKILL:
            num_kills += 1
        if num_kills % 3 == 0:
            problems += runs.problems_at_end(f"kill {num_kills}")
            runs.reset(finished=False)
    return num_kills, problems


def main(folder: Path, scenario: str, *numbers: int) -> None:
    runs = Runs(folder)
    runs.place.mkdir()
    # Curves take as long as all the rest; how they get into the folder is what counts here.
    with patch("prefopt.commands.train.plot_curves", lambda _, output: output.write_bytes(b"png")):
        if scenario == "random":
            num_kills, problems = kill_at_random(runs, *numbers)
        else:
            num_kills, problems = kill_at_calls(runs, scenario, *numbers)
    sys.stdout.write(json.dumps({"kills": num_kills, "problems": problems}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
