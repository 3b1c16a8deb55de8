"""A run that was killed and resumed ends in the same bits as one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from prefopt.commands.train import train
from prefopt.config import load_recipe
from tests.support.ends import equal, metrics
from tests.support.launch import CONFIGURATIONS, REPOSITORY, run
from tests.support.tiny import save_tiny_model, write_lists

# Logging every 3 steps and saving every 8: the log window is open at every checkpoint. An epoch
# has 9 steps, so step 8 is inside the first and step 16 inside the second.
STEPS, SAVE_EVERY, LOG_EVERY, EVALUATE_EVERY = 24, 8, 3, 5
PROCESSES = {"single": "one process", "ddp": "two processes"}


def _recipe(folder: Path, name: str, adapter: bool) -> Path:
    recipe = {
        "model": {"path": str(folder / "model")},
        "data": {
            "sources": [{"path": str(folder / "lists.jsonl")}],
            "evaluation": {"num_groups": 5},
            "cache_dir": str(folder / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": str(folder / name),
            "groups_per_step": 5,
            "tokens_per_micro_batch": 150,
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": SAVE_EVERY,
            "logging_steps": LOG_EVERY,
            "eval_strategy": "steps",
            "eval_steps": EVALUATE_EVERY,
            "learning_rate": 1e-3,
        },
    }
    if adapter:
        recipe["adapter"] = {"r": 4}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def _command(mode: str, recipe: Path, *flags: str) -> list[str]:
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"{CONFIGURATIONS}/{mode}.yaml",
    ]
    return [*launcher, "-m", "prefopt", "train", str(recipe), *flags]


def _kill_after_first_checkpoint(mode: str, recipe: Path, output: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *_command(mode, recipe)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    first = output / f"checkpoint-{SAVE_EVERY}"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert first.exists()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("mode", PROCESSES)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, mode, adapter):
    save_tiny_model(tmp_path / "model")
    write_lists(tmp_path / "lists.jsonl", 50)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = run(*_command(mode, _recipe(tmp_path, "straight", adapter)))
    assert done.returncode == 0, done.stderr

    recipe = _recipe(tmp_path, "broken", adapter)
    _kill_after_first_checkpoint(mode, recipe, broken)
    done = run(*_command(mode, recipe, "--resume"))

    assert done.returncode == 0, done.stderr
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert (broken / weights).read_bytes() == (straight / weights).read_bytes()
    last = f"checkpoint-{STEPS}"
    states = [torch.load(folder / last / "optimizer.pt") for folder in (straight, broken)]
    assert equal(*states)
    assert metrics(broken) == metrics(straight)
    steps = [line["step"] for line in metrics(straight) if "learning_rate" in line]
    assert steps == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))


@pytest.mark.slow
def test_resuming_with_other_threads_says_so(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_lists(tmp_path / "lists.jsonl", 50)
    recipe = _recipe(tmp_path, "run", adapter=False)
    assert run(*_command("single", recipe)).returncode == 0
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{STEPS}")

    resumed = run(*_command("single", recipe, "--resume"), environment={"OMP_NUM_THREADS": "2"})

    assert resumed.returncode == 0, resumed.stderr
    assert "num_threads was 1 and is 2" in resumed.stdout


def test_resuming_a_finished_run_trains_no_further_step(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_lists(tmp_path / "lists.jsonl", 50)
    recipe = load_recipe(_recipe(tmp_path, "run", adapter=False))
    train(recipe)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()

    trainer = train(recipe, resume="auto")

    assert trainer.state.global_step == STEPS
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
