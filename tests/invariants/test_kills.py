"""Wherever a run is killed, it goes on to the bits of one that was not, and nobody mends it."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.ends import differences
from tests.support.launch import CONFIGURATIONS, REPOSITORY, run
from tests.support.tiny import save_tiny_model, write_pairs

SMALLEST = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / "ddp.yaml")]


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model", **SMALLEST)
    write_pairs(tmp_path / "pairs.jsonl", 6)
    return tmp_path


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "kill_at.so"
    source = REPOSITORY / "tests" / "support" / "kill_at.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def kill(folder, shim):
    def kill(*arguments, timeout=1200):
        script = REPOSITORY / "tests" / "invariants" / "kill_everywhere.py"
        environment = {"PYTHONPATH": str(REPOSITORY), "LD_PRELOAD": str(shim)}
        done = run(script, folder, *map(str, arguments), environment=environment, timeout=timeout)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["problems"] == []
        return found["kills"]

    return kill


@pytest.mark.soak
@pytest.mark.parametrize("half", [1, 2])
def test_a_kill_at_any_call_of_a_run_loses_nothing(kill, half):
    assert kill("train", half, 2) > 100


@pytest.mark.soak
@pytest.mark.parametrize("scenario", ["go_on", "replace"])
def test_a_kill_at_any_call_of_a_run_in_an_old_folder_loses_nothing(kill, scenario):
    # What follows the old run's removal are the calls of any run: some of them will do.
    assert kill(scenario, 1, 5) > 30


@pytest.mark.soak
def test_30_kills_at_random_times_lose_nothing(kill):
    assert kill("random", 30) == 30


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "step"), [("train", 61), ("go_on", 23), ("replace", 61)])
def test_a_kill_at_some_calls_loses_nothing(kill, scenario, step):
    assert kill(scenario, 7, step) > 4


@pytest.mark.slow
def test_kills_at_random_times_lose_nothing(kill):
    assert kill("random", 4) == 4


@pytest.mark.soak
def test_10_kills_of_one_of_two_processes_lose_nothing(folder):
    assert run(*LAUNCH, "-m", "prefopt", "train", _recipe(folder)).returncode == 0
    shutil.move(folder / "run", folder / "straight")
    generator = random.Random(0)

    num_kills = 0
    while num_kills < 10:
        num_kills += _kill_one_of_two(folder, rank=generator.randrange(2), wait=generator.random())
        if num_kills % 3 == 0:
            _finish(folder)
            shutil.rmtree(folder / "run")

    _finish(folder)


def _finish(folder: Path) -> None:
    done = run(*LAUNCH, "-m", "prefopt", "train", _recipe(folder), "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert differences(folder / "run", folder / "straight") == []


def _recipe(folder: Path) -> Path:
    recipe = {
        "model": {"path": str(folder / "model")},
        "data": {
            "sources": [{"path": str(folder / "pairs.jsonl")}],
            "evaluation": {"num_groups": 2},
            "cache_dir": str(folder / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": str(folder / "run"),
            "groups_per_step": 2,
            "max_steps": 30,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 2,
            "logging_steps": 2,
            "eval_strategy": "epoch",
        },
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def _kill_one_of_two(folder: Path, *, rank: int, wait: float) -> bool:
    """Go on with the run and kill a process of it, some while after training began.

    Args:
        folder: where the recipe is.
        rank: which one.
        wait: as a part of the 4 seconds or so that are left then.

    Returns:
        Whether it was still there to be killed.
    """
    process = subprocess.Popen(
        [sys.executable, *LAUNCH, "-m", "prefopt", "train", str(_recipe(folder)), "--resume"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    newest = _state_of_run(folder)
    deadline = time.monotonic() + 120
    while _state_of_run(folder) == newest and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(4 * wait)
    was_there = _kill_rank(process.pid, rank)
    # The launcher ends the other one.
    process.wait(timeout=120)
    return was_there


def _state_of_run(folder: Path) -> set[tuple[str, float]]:
    found = set()
    for path in (folder / "run").glob("*"):
        # A file may be moved away between two looks, and a process may end.
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime))
    return found


def _kill_rank(launcher: int, rank: int) -> bool:
    """Kill the launcher's child of that rank; False if it is not there, or no longer."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher).children():
            if child.environ().get("RANK") == str(rank):
                child.kill()
                return True
    return False
