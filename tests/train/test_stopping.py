"""A run that is asked to stop saves after the step, leaves, and goes on to the same bits."""

import json
import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from prefopt.train import trainer as trainer_module
from prefopt.train.callbacks import MetricsFile
from prefopt.train.metrics import StepSums
from prefopt.train.signals import SIGNALS, Stopped, StopReason
from prefopt.train.stopping import StopAgreement
from tests.support.runs import recipe, run
from tests.support.tiny import save_tiny_model, write_pairs

# 12 groups to learn from are 3 steps an epoch.
STEPS, STEPS_PER_EPOCH = 8, 3
TRAINING = {
    "max_steps": STEPS,
    "logging_steps": 1,
    "eval_strategy": "epoch",
    "save_strategy": "no",
}
SECTIONS = {
    "model": {"dropout": True},
    "data": {"evaluation": {"num_groups": 2}},
    # Dropout shows whether random numbers go on where they were.
    "adapter": {"r": 4, "dropout": 0.3},
}
TIMES = ("tokens_per_second", "train_runtime", "train_steps_per_second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 14)
    return folder


@pytest.fixture(scope="module")
def straight(folder):
    run(folder, "straight", training=TRAINING, **SECTIONS)
    return folder / "straight"


def stopped_run(folder: Path, name: str, after: int, *, number=signal.SIGTERM, **training) -> str:
    """What a run says that gets a signal when step `after` - 1 has been logged."""
    log = MetricsFile.on_log

    def log_and_kill(self, args, state, control, logs=None, **kwargs):
        log(self, args, state, control, logs, **kwargs)
        if state.global_step == after - 1 and "learning_rate" in logs:
            os.kill(os.getpid(), number)

    kill = patch.object(MetricsFile, "on_log", log_and_kill)
    with kill, SIGNALS.heard(), pytest.raises(Stopped) as stopped:
        run(folder, name, training={**TRAINING, **training}, **SECTIONS)
    assert stopped.value.has_saved
    return str(stopped.value)


def checkpoints(run_folder: Path) -> list[str]:
    return sorted(path.name for path in run_folder.glob("checkpoint-*"))


def metrics(run_folder: Path) -> list[dict[str, float]]:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.mark.parametrize("after", [2, STEPS_PER_EPOCH], ids=["inside an epoch", "at its end"])
def test_a_stopped_run_goes_on_to_the_same_bits(folder, straight, after):
    name = f"stopped-{after}"
    said = stopped_run(folder, name, after)
    assert f"by a signal after step {after}, saved in" in said
    assert checkpoints(folder / name) == [f"checkpoint-{after}"]
    assert not (folder / name / "adapter_model.safetensors").exists()

    run(folder, name, resume="auto", training=TRAINING, **SECTIONS)

    weights = "adapter_model.safetensors"
    assert (folder / name / weights).read_bytes() == (straight / weights).read_bytes()
    assert metrics(folder / name) == metrics(straight)
    assert [line["step"] for line in metrics(straight) if "eval_loss" in line] == [3, 6, 8]


def test_a_strategy_that_keeps_only_the_best_does_not_keep_a_run_from_stopping(folder):
    best = {"save_strategy": "best", "metric_for_best_model": "eval_loss"}
    # Training makes it worse from the first step on, so no evaluation after that is the best.
    worse = {"learning_rate": 3.0, "eval_strategy": "steps", "eval_steps": 1}

    stopped_run(folder, "best", 4, **best, **worse)

    assert "checkpoint-4" in checkpoints(folder / "best")


def test_ctrl_c_stops_as_well_and_saves_nothing_twice(folder):
    with patch.object(
        trainer_module, "save_atomically", side_effect=trainer_module.save_atomically
    ) as save:
        every = {"save_strategy": "steps", "save_steps": 1}
        said = stopped_run(folder, "every", 2, number=signal.SIGINT, **every)

    assert said.startswith("by an interrupt after step 2, saved in")
    assert save.call_count == 2
    assert checkpoints(folder / "every") == ["checkpoint-1", "checkpoint-2"]


def test_a_signal_in_the_last_step_lets_the_run_end(folder):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        stopped_run(folder, "last", STEPS)

    assert (folder / "last" / "adapter_model.safetensors").is_file()
    assert checkpoints(folder / "last") == []


def test_at_the_time_limit_a_run_saves_and_leaves(folder, straight):
    with pytest.raises(Stopped, match=r"by training.max_minutes after step 1, saved") as stopped:
        run(folder, "limit", training={**TRAINING, "max_minutes": 1e-6}, **SECTIONS)
    assert stopped.value.reason.exit_code == 75

    # The limit is not part of what is learned, so it may change.
    run(folder, "limit", resume="auto", training={**TRAINING, "max_minutes": 60}, **SECTIONS)

    weights = "adapter_model.safetensors"
    assert (folder / "limit" / weights).read_bytes() == (straight / weights).read_bytes()


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan"), "soon"])
def test_a_time_limit_is_a_positive_number(folder, minutes):
    with pytest.raises(ValueError, match="max_minutes"):
        recipe(folder, training={"max_minutes": minutes})


def test_checkpoints_of_the_model_alone_allow_no_time_limit(folder):
    with pytest.raises(ValueError, match=r"training.max_minutes .*save_only_model"):
        recipe(folder, training={"max_minutes": 1, "save_only_model": True})


def test_a_stop_that_cannot_be_resumed_says_so(folder):
    said = stopped_run(folder, "model-only", 2, save_only_model=True)

    assert "the model alone, by training.save_only_model" in said


def test_a_wish_of_any_process_stops_all_for_the_same_reason():
    sums, late = StepSums(), StopAgreement(time.monotonic())
    late.wish(sums, torch.device("cpu"))
    assert {name: value.item() for name, value in sums.values.items()} == {
        "stop/SIGNAL": 0.0,
        "stop/INTERRUPT": 0.0,
        "stop/TIME_LIMIT": 1.0,
    }

    other = StopAgreement()
    reduced = {"loss:sum": 3.0, "stop/SIGNAL": 0.0, "stop/INTERRUPT": 0.0, "stop/TIME_LIMIT": 1.0}
    other.agree(reduced)

    assert other.reason is StopReason.TIME_LIMIT
    assert reduced == {"loss:sum": 3.0}
