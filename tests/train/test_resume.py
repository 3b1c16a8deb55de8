"""A run goes on from the newest checkpoint that is whole, and says what ails the others."""

import json
import os
import shutil
from unittest.mock import patch

import pytest

from prefopt.errors import UserError
from prefopt.train.durable import failed_writes_are_one_line
from prefopt.train.manifest import write_manifest
from prefopt.train.resume import check_engine, choose_checkpoint
from tests.support.ends import differences
from tests.support.runs import run
from tests.support.tiny import save_tiny_model, write_pairs

# Steps 2, 4 and 6 are saved, after an evaluation each.
RUN = {
    "data": {"evaluation": {"num_groups": 2}},
    "training": {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "eval_loss",
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 14)
    run(folder, **RUN)
    shutil.copytree(folder / "run", folder / "straight")
    return folder


@pytest.fixture
def folder(finished):
    """The same paths for every test, since a run goes on only where it was."""
    shutil.rmtree(finished / "run")
    shutil.copytree(finished / "straight", finished / "run")
    return finished


def _truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FAULTS = pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", _truncate, "model.safetensors has"),
        ("optimizer.pt", _flip_a_bit, "optimizer.pt is not what was saved"),
        ("rng_state.pth", os.unlink, "rng_state.pth is missing"),
        ("scheduler.pt", os.unlink, "scheduler.pt is missing"),
        ("prefopt_state.json", os.unlink, "prefopt_state.json is missing"),
        ("manifest.json", os.unlink, "manifest.json is missing"),
        ("manifest.json", _truncate, "manifest.json is damaged"),
    ],
)


@FAULTS
def test_a_damaged_checkpoint_is_named_with_its_file_and_the_one_before(
    folder, name, damage, words
):
    newest, before = folder / "run" / "checkpoint-6", folder / "run" / "checkpoint-4"
    damage(newest / name)
    left = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}

    with pytest.raises(UserError) as refusal:
        run(folder, resume=str(newest), **RUN)

    line = str(refusal.value)
    assert line.startswith(f"--resume: {newest} is not complete: {words}")
    assert f"--resume {before}" in line
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == left


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("optimizer.pt", _truncate, "optimizer.pt has"),
        ("manifest.json", os.unlink, "manifest.json is missing"),
    ],
)
def test_auto_goes_on_from_the_newest_that_is_whole(folder, capsys, name, damage, words):
    damage(folder / "run" / "checkpoint-6" / name)

    run(folder, resume="auto", **RUN)

    said = capsys.readouterr().out
    assert f"checkpoint-6 is not complete and not used: {words}" in said
    assert f"resuming from {folder / 'run' / 'checkpoint-4'}" in said
    assert differences(folder / "run", folder / "straight") == []


def test_a_folder_without_any_whole_checkpoint_is_not_started_anew(folder):
    for checkpoint in (folder / "run").glob("checkpoint-*"):
        (checkpoint / "scheduler.pt").unlink()

    with pytest.raises(UserError, match=r"checkpoint-6: scheduler.pt is missing.*--overwrite"):
        run(folder, resume="auto", **RUN)

    assert (folder / "run" / "model.safetensors").exists()


def test_a_folder_of_another_program_is_no_checkpoint(folder):
    shutil.rmtree(folder / "run" / "checkpoint-6")
    (folder / "run" / "checkpoint-6").mkdir()

    with pytest.raises(UserError, match="is no checkpoint of a prefopt run"):
        run(folder, resume=str(folder / "run" / "checkpoint-6"), **RUN)


def test_the_best_checkpoint_must_be_whole_where_it_is_loaded_at_the_end(tmp_path):
    best = tmp_path / "checkpoint-2"
    for step in (2, 4):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        state = {"best_model_checkpoint": str(best)}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        write_manifest(checkpoint)
    (best / "trainer_state.json").unlink()
    said = []

    def choose(*, needs_best):
        return choose_checkpoint(tmp_path, "auto", needs_best=needs_best, say=said.append)

    assert choose(needs_best=False) == tmp_path / "checkpoint-4"
    assert said == []
    with pytest.raises(UserError, match=r"no checkpoint in .* is complete"):
        choose(needs_best=True)
    assert f"its best checkpoint {best}: trainer_state.json is missing" in said[0]


def test_a_killed_rotation_leaves_no_half_of_a_checkpoint_under_its_name(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 14)
    saves = {**RUN, "training": {**RUN["training"], "save_total_limit": 1}}
    del saves["training"]["metric_for_best_model"]
    remove = shutil.rmtree

    def killed_at_checkpoint_2(folder, **options):
        if (folder / "checkpoint-2" / "manifest.json").exists() and folder.name == ".saving":
            (folder / "checkpoint-2" / "manifest.json").unlink()
            raise KeyboardInterrupt
        remove(folder, **options)

    with (
        patch("prefopt.train.durable.shutil.rmtree", killed_at_checkpoint_2),
        pytest.raises(KeyboardInterrupt),
    ):
        run(tmp_path, **saves)

    assert sorted(path.name for path in (tmp_path / "run").glob("*-*")) == ["checkpoint-4"]
    run(tmp_path, resume="auto", **saves)
    assert sorted(path.name for path in (tmp_path / "run").glob("*-*")) == ["checkpoint-6"]
    assert not (tmp_path / "run" / ".saving").exists()


@pytest.mark.parametrize(
    ("engine", "num_processes", "words"),
    [
        ("fsdp", 2, "written under zero3 on 2 processes, and fsdp cannot read it"),
        ("zero3", 1, "written under zero3 by 2 processes, and DeepSpeed cannot divide"),
        ("zero3", 4, "Launch 2 processes"),
    ],
)
def test_a_checkpoint_that_the_engine_cannot_read_is_refused(
    tmp_path, engine, num_processes, words
):
    state = {"engine": "zero3", "num_processes": 2}
    (tmp_path / "prefopt_state.json").write_text(json.dumps(state))
    check_engine(tmp_path, "zero3", 2)

    with pytest.raises(UserError, match=words):
        check_engine(tmp_path, engine, num_processes)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "no space left while saving"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left while"),
        (OSError(30, "Read-only file system"), "cannot write (Read-only file system) while"),
        (PermissionError(13, "Permission denied"), "cannot write (Permission denied) while"),
        (RuntimeError("(os error 30)"), "cannot write (Read-only file system) while"),
    ],
)
def test_a_failed_write_is_one_line(tmp_path, error, words):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / ".saving" / "checkpoint-8").mkdir(parents=True)

    with pytest.raises(UserError) as refusal, failed_writes_are_one_line(tmp_path / "checkpoint-8"):
        raise error

    assert words in str(refusal.value)
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-4'}" in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_other_errors_pass(tmp_path):
    with (
        pytest.raises(RuntimeError, match="of another kind"),
        failed_writes_are_one_line(tmp_path / "checkpoint-8"),
    ):
        raise RuntimeError("of another kind")
