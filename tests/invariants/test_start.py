"""Processes started with different inputs say so; more of them than there are groups train."""

import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.start_all import GROUPS_PER_STEP, STEPS
from tests.support.ends import metrics
from tests.support.launch import CONFIGURATIONS, REPOSITORY, launch, partitioning_zero_3
from tests.support.tiny import save_tiny_model, write_pairs

SCRIPT = REPOSITORY / "tests" / "invariants" / "start_all.py"
MODES = ["ddp", "zero3", "fsdp2"]
NUM_PROCESSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 9)
    (folder / "other").mkdir()
    write_pairs(folder / "other" / "pairs.jsonl", 9, seed=1)
    return folder


@pytest.fixture(scope="module")
def started(folder):
    @cache
    def start(mode, num_processes=NUM_PROCESSES):
        output = folder / f"{mode}-{num_processes}"
        output.mkdir()
        configuration = CONFIGURATIONS / f"{mode}.yaml"
        if mode == "zero3":
            configuration = partitioning_zero_3(folder)
        of_so_many = output / "launch.yaml"
        text = configuration.read_text()
        of_so_many.write_text(text.replace("num_processes: 2", f"num_processes: {num_processes}"))
        launch(
            mode,
            SCRIPT,
            folder,
            output,
            configuration=of_so_many,
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
        return output, json.loads((output / "told.json").read_text())

    return start


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_processes_with_different_recipes_name_the_key_the_values_and_who_has_them(started, mode):
    _, told = started(mode)

    assert len(told["recipe"]) == NUM_PROCESSES
    (line,) = set(told["recipe"])
    assert line.startswith("training.learning_rate differs between processes: 0.01 (process 0 on ")
    assert " and 1 more), 0.02 (process 2 on " in line
    assert line.endswith("Start all processes with the same recipe and overrides.")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_processes_with_different_packages_name_the_versions(started, mode):
    _, told = started(mode)

    (line,) = set(told["versions"])
    assert line.startswith(f"package torch differs between processes: {torch.__version__} (")
    assert " 2.0.1 (process 2 on " in line
    assert line.endswith("Install the same versions for all processes.")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_processes_whose_file_holds_something_else_name_the_source(started, mode):
    _, told = started(mode)

    (line,) = set(told["data"])
    assert line.startswith("data.sources.0 as tokens differs between processes: ")
    assert line.endswith("Give all processes the same files, tokenizer and chat template.")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_more_processes_than_groups_take_the_steps_that_one_takes(started, mode):
    assert GROUPS_PER_STEP < NUM_PROCESSES
    output, _ = started(mode)
    alone, _ = started("single", 1)

    found, expected = metrics(output / "run"), metrics(alone / "run")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for key in ("loss", "eval_loss"):
            if key in theirs:
                assert mine[key] == pytest.approx(theirs[key], abs=1e-5)
    before = load_file(output.parent / "model" / "model.safetensors")
    mine = load_file(output / "run" / "model.safetensors")
    theirs = load_file(alone / "run" / "model.safetensors")
    update = torch.cat([(theirs[name] - before[name]).flatten() for name in before])
    gap = torch.cat([(mine[name] - theirs[name]).flatten() for name in before])
    assert len([line for line in found if "loss" in line]) == STEPS
    assert gap.norm() / update.norm() <= 1e-4
