"""No checkpoint lies between the last step of an epoch and what the epoch's end brings."""

import shutil
from unittest.mock import patch

import pytest
from transformers import TrainerCallback

import prefopt.commands.assemble as command
from tests.support.ends import differences, metrics
from tests.support.runs import run
from tests.support.tiny import save_tiny_model, write_pairs

# 14 pairs, 2 of them held out, 4 a step: an epoch has 3 steps.
EPOCH = 3
DATA = {"evaluation": {"num_groups": 2}}
LOSS_GROWS = {"name": "nll", "of": "all"}


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 14)
    return tmp_path


def _resumed_from(folder, step, **sections):
    """Train, then go on from a checkpoint as if the run had been killed right after it."""
    run(folder, **sections)
    shutil.copytree(folder / "run", folder / "straight")
    for checkpoint in (folder / "run").glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    return run(folder, resume="auto", **sections)


@pytest.mark.parametrize("step", [2 * EPOCH, 7])
def test_a_run_goes_on_with_every_evaluation_and_log_line(folder, step):
    training = {
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "epoch",
        "logging_steps": 2,
        "metric_for_best_model": "eval_loss",
    }

    _resumed_from(folder, step, data=DATA, training=training)

    evaluated = [line["step"] for line in metrics(folder / "straight") if "eval_loss" in line]
    assert evaluated == [EPOCH, 2 * EPOCH, 7]
    assert differences(folder / "run", folder / "straight") == []


def test_a_run_that_goes_on_from_its_end_inside_an_epoch_evaluates_nothing_again(folder):
    training = {"max_steps": 4, "save_strategy": "epoch", "eval_strategy": "epoch"}

    _resumed_from(folder, 4, data=DATA, training=training)

    assert differences(folder / "run", folder / "straight") == []


def test_a_run_that_stopped_early_takes_no_further_step(folder):
    training = {
        "max_steps": 8,
        "learning_rate": 3.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "early_stopping_patience": 1,
    }

    trainer = _resumed_from(folder, 8, data=DATA, objective=LOSS_GROWS, training=training)

    assert 1 < trainer.state.global_step < 8
    assert differences(folder / "run", folder / "straight") == []


class _StopsAt(TrainerCallback):
    """What a signal does: save after this step, and stop."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.slow
def test_a_run_that_was_stopped_inside_an_epoch_goes_on_as_if_it_were_not(folder):
    step = 4
    training = {
        "max_steps": 7,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "logging_steps": 2,
    }
    sections = {"data": DATA, "training": training}
    run(folder, **sections)
    shutil.move(folder / "run", folder / "straight")

    callbacks = command._callbacks
    with patch.object(command, "_callbacks", lambda recipe: [*callbacks(recipe), _StopsAt(step)]):
        stopped = run(folder, **sections)
    assert stopped.state.global_step == step
    run(folder, resume="auto", **sections)

    shutil.rmtree(folder / "run" / f"checkpoint-{step}")
    assert differences(folder / "run", folder / "straight") == []
