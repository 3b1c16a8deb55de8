"""Two processes that are asked to stop agree on a step, and go on to the same bits later.

A process that dies takes the other with it, and the one that failed first is the one that speaks.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from tests.invariants.test_resume import _command, _recipe
from tests.support.ends import equal, metrics
from tests.support.launch import CONFIGURATIONS, REPOSITORY
from tests.support.tiny import save_tiny_model, write_lists

STEPS = 24
# Enough for two processes on one busy core to start and to train.
PATIENCE = 300
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(mode: str, recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    return start("-m", "prefopt", "train", "--accelerate", mode, recipe, *arguments)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that was said."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out + err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def has_logged(output: Path, step: int) -> bool:
    file = output / "metrics.jsonl"
    return file.exists() and any(line["step"] >= step for line in metrics(output))


def process_of_rank(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    children = psutil.Process(launcher.pid).children()
    (found,) = [child for child in children if child.environ().get("RANK") == str(rank)]
    return found


def newest_step(output: Path) -> int:
    return max(int(path.name.rpartition("-")[2]) for path in output.glob("checkpoint-*"))


def optimizer_states(output: Path) -> list[object]:
    """DeepSpeed's, one of each process, or the only one."""
    last = output / f"checkpoint-{STEPS}"
    files = sorted(last.glob("global_step*/*optim_states.pt")) or [last / "optimizer.pt"]
    states = [torch.load(file, weights_only=False) for file in files]
    for state in states:
        inner = state.get("optimizer_state_dict", {})
        if "loss_scaler" in inner:
            # An object that is equal to itself alone.
            inner["loss_scaler"] = vars(inner["loss_scaler"])
    return states


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop")
    save_tiny_model(folder / "model")
    write_lists(folder / "lists.jsonl", 50)
    return folder


def assert_same_end(output: Path, straight: Path) -> None:
    weights = "model.safetensors"
    assert (output / weights).read_bytes() == (straight / weights).read_bytes()
    assert equal(optimizer_states(output), optimizer_states(straight))
    assert metrics(output) == metrics(straight)


@pytest.mark.slow
def test_ddp_stops_at_the_time_limit_and_by_a_signal_to_one_process(inputs):
    code, said = end(train("ddp", _recipe(inputs, "ddp-straight", adapter=False)))
    assert code == 0, said
    recipe, output = _recipe(inputs, "ddp", adapter=False), inputs / "ddp"

    code, said = end(train("ddp", recipe, "training.max_minutes=1e-6"))
    assert code == 75, said
    assert said.count("Stopped by training.max_minutes after step 1") == 1
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]

    # The signal reaches the process that writes nothing, and the launcher gets none.
    process = train("ddp", recipe, "--resume")
    wait_for(lambda: has_logged(output, 3), process)
    process_of_rank(process, 1).send_signal(signal.SIGUSR1)
    code, said = end(process)
    assert code == 75, said
    assert said.count("Stopped by a signal after step") == 1
    assert "Traceback" not in said
    assert 3 < newest_step(output) < STEPS

    code, said = end(train("ddp", recipe, "--resume"))
    assert code == 0, said
    assert_same_end(output, inputs / "ddp-straight")


@pytest.mark.slow
def test_zero2_stops_by_a_signal_to_the_launcher(inputs):
    code, said = end(train("zero2", _recipe(inputs, "zero2-straight", adapter=False)))
    assert code == 0, said
    recipe, output = _recipe(inputs, "zero2", adapter=False), inputs / "zero2"

    process = train("zero2", recipe)
    wait_for(lambda: has_logged(output, 3), process)
    process.terminate()
    code, said = end(process)
    assert code == 75, said
    assert said.count("Stopped by a signal after step") == 1
    assert "Traceback" not in said
    assert 3 < newest_step(output) < STEPS

    code, said = end(train("zero2", recipe, "--resume"))
    assert code == 0, said
    assert_same_end(output, inputs / "zero2-straight")


@pytest.mark.slow
def test_before_the_first_step_a_signal_ends_all_at_once(inputs):
    recipe, output = _recipe(inputs, "early", adapter=False), inputs / "early"
    process = train("ddp", recipe)

    # While the processes import what they need.
    wait_for(lambda: len(psutil.Process(process.pid).children()) == 2, process)
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    code, said = end(process)

    assert code == 75, said
    assert time.monotonic() - began < 15
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode", "word"),
    [
        ("exception", "ddp", "ZeroDivisionError: the fault of this test"),
        ("mistake", "zero2", "error (process 1): the mistake of this test."),
        ("killed", "fsdp2", "Signal 9 (SIGKILL)"),
    ],
)
def test_a_process_that_dies_takes_the_other_with_it_and_is_the_one_to_speak(
    inputs, kind, mode, word
):
    recipe, output = _recipe(inputs, kind, adapter=False), inputs / kind
    script = REPOSITORY / "tests" / "invariants" / "fail_on_one.py"
    launcher = _command(mode, recipe)[:4]
    assert launcher[-1] == f"{CONFIGURATIONS}/{mode}.yaml"

    process = start(*launcher, script, kind, recipe)
    wait_for(lambda: (output / "recipe.yaml").exists(), process)
    began = time.monotonic()
    code, said = end(process)

    assert code == 1
    assert time.monotonic() - began < 60
    assert said.count(word) == 1
    # A process that is killed says nothing itself.
    first = {"exception": ["1"], "mistake": [], "killed": ["0"]}[kind]
    assert re.findall(r"process (\d) failed:\nTraceback", said) == first
    later = re.findall(r"^process (\d) ends after another one, with \w+", said, re.MULTILINE)
    assert later == ([] if kind == "killed" else ["0"])
    assert "[rank" not in said
