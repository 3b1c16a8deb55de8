"""A run's folder: nothing of value is lost, and a run goes on only where it can."""

import errno
import json
import shutil
from unittest.mock import patch

import pytest
import torch
from huggingface_hub import ModelCard

import prefopt
from prefopt.commands.train import train
from prefopt.errors import UserError
from prefopt.train.lock import LOCK_FILE
from prefopt.train.run_folder import find_start, open_run
from tests.support.runs import LORA, logged, recipe, run
from tests.support.tiny import save_tiny_model, write_pairs

SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    return tmp_path


def test_resuming_a_finished_run_without_checkpoints_keeps_its_model(folder):
    run(folder)
    before = (folder / "run" / "model.safetensors").read_bytes()

    with pytest.raises(UserError, match="finished and kept no checkpoint"):
        run(folder, resume="auto")

    assert (folder / "run" / "model.safetensors").read_bytes() == before


def test_resuming_where_nothing_was_started_starts(folder):
    trainer = run(folder, resume="auto")

    assert trainer.state.global_step == 2


def test_resuming_with_other_data_is_refused(folder):
    run(folder, training=SAVES)
    write_pairs(folder / "pairs.jsonl", 11)

    with pytest.raises(UserError, match="the data is not what"):
        run(folder, training=SAVES, resume="auto")


def test_resuming_with_another_token_budget_is_allowed_and_said(folder, capsys):
    run(folder, training={**SAVES, "tokens_per_micro_batch": 1000})
    shutil.rmtree(folder / "run" / "checkpoint-6")

    run(folder, training={**SAVES, "tokens_per_micro_batch": 100}, resume="auto")

    assert "tokens_per_micro_batch was 1000 and is 100" in capsys.readouterr().out


def test_resuming_from_an_older_checkpoint_forgets_the_later_ones(folder):
    trainer = run(folder, training=SAVES)
    losses = logged(trainer, "loss")
    older = folder / "run" / "checkpoint-2"

    # What open_run does before the first step: a run that dies now must leave a folder to go on in.
    open_run(folder / "run", recipe(folder, training=SAVES).resolved(), {}, older)

    assert sorted(path.name for path in (folder / "run").glob("checkpoint-*")) == ["checkpoint-2"]
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == losses[:2]


def test_checkpoints_without_optimiser_state_are_not_resumed(folder):
    only_model = {**SAVES, "save_only_model": True}
    run(folder, training=only_model)

    with pytest.raises(UserError, match="save_only_model"):
        run(folder, training=only_model, resume="auto")


def test_a_shortened_metrics_file_is_refused(folder):
    run(folder, training=SAVES)
    (folder / "run" / "metrics.jsonl").write_text("")

    with pytest.raises(UserError, match="is shorter than when"):
        run(folder, training=SAVES, resume="auto")


@pytest.mark.parametrize("key", ["cache_dir", "source", "adapter"])
def test_a_run_folder_must_not_hold_what_the_run_reads(folder, key):
    sections = {
        "cache_dir": {"data": {"cache_dir": str(folder / "run" / "cache")}},
        "source": {"data": {"sources": [{"path": str(folder / "run" / "pairs.jsonl")}]}},
        "adapter": {"adapter": {"path": str(folder / "run")}},
    }[key]

    with pytest.raises(UserError, match=r"training.output_dir: .* holds"):
        train(recipe(folder, **sections), overwrite=True)


@pytest.mark.parametrize("num_kept", [3, 0], ids=["from a checkpoint", "from the start"])
def test_the_same_command_goes_on_with_a_run_that_was_cut_short(folder, capsys, num_kept):
    run(folder, training=SAVES)
    whole = (folder / "run" / "model.safetensors").read_bytes()
    losses = [json.loads(line)["loss"] for line in metrics_of(folder)[:6]]
    # As a kill after step 4 or in step 1 would leave it: checkpoint-2 and -4, or none.
    for name in ("config.json", "model.safetensors"):
        (folder / "run" / name).unlink()
    for checkpoint in sorted((folder / "run").glob("checkpoint-*"))[max(0, num_kept - 1) :]:
        shutil.rmtree(checkpoint)

    run(folder, training={**SAVES, "logging_steps": 1})

    assert "holds this run, which has not ended: going on with it" in capsys.readouterr().out
    assert (folder / "run" / "model.safetensors").read_bytes() == whole
    assert [json.loads(line)["loss"] for line in metrics_of(folder)[:6]] == losses


def metrics_of(folder):
    return (folder / "run" / "metrics.jsonl").read_text().splitlines()


def test_the_same_command_keeps_a_finished_run(folder):
    run(folder, training=SAVES)
    before = (folder / "run" / "model.safetensors").read_bytes()

    with pytest.raises(UserError, match="holds this run already, finished"):
        run(folder, training=SAVES)

    assert (folder / "run" / "model.safetensors").read_bytes() == before


def test_the_same_command_with_other_data_is_refused(folder):
    run(folder, training=SAVES)
    (folder / "run" / "config.json").unlink()
    write_pairs(folder / "pairs.jsonl", 11)

    with pytest.raises(UserError, match="holds another run: other data"):
        run(folder, training=SAVES)


def test_a_run_is_not_taken_over_while_another_process_trains_it(folder):
    run(folder, training=SAVES)
    (folder / "run" / "config.json").unlink()
    (folder / "run" / LOCK_FILE).touch()
    taken = OSError(errno.EAGAIN, "taken")

    for flags in ({}, {"resume": "auto"}, {"overwrite": True}):
        with patch("fcntl.lockf", side_effect=taken), pytest.raises(UserError, match="trains in"):
            train(recipe(folder, training=SAVES), **flags)

    assert (folder / "run" / "checkpoint-6").is_dir()


def test_nothing_is_changed_by_looking(folder):
    values = recipe(folder).resolved()

    start = find_start(folder / "new", values, {}, resume=None, overwrite=False, say=print)

    assert start is None
    assert not (folder / "new").exists()


def test_a_saved_model_generates_with_its_cache(folder):
    run(folder)

    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["use_cache"] is True


def test_a_run_says_what_it_learns_from(folder, capsys):
    run(folder, data={"max_length": 14, "evaluation": {"num_groups": 1}})

    said = capsys.readouterr().out
    assert "pairs.jsonl (pairs): 12 rows, 12 records" in said
    assert "too long and dropped" in said
    assert "1 held out" in said
    assert "model in" in said


@pytest.mark.parametrize("sections", [{}, {"adapter": LORA}, {"objective": {"name": "simpo"}}])
def test_the_model_card_of_a_run_says_what_it_was_made_of_and_its_results(folder, sections):
    data = {"evaluation": {"num_groups": 2}}
    steps = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = run(folder, data=data, training=steps, **sections)

    card = ModelCard.load(folder / "run" / "README.md")
    name = sections.get("objective", {"name": "dpo"})["name"]
    start = "the model as it was when training began"
    assert f"- Objective: `{name}`\n- Data: `pairs.jsonl`\n" in card.text
    assert f"- Reference: {start if name == 'dpo' else 'none'}\n" in card.text
    assert f"- torch {torch.__version__}\n" in card.text
    assert f"- prefopt {prefopt.__version__}\n" in card.text
    assert card.data.library_name == ("peft" if "adapter" in sections else "transformers")
    [loss] = logged(trainer, "eval_loss")
    assert f"| eval_loss | {loss:.4g} |" in card.text
    assert all(name in card.text for name in ("rewards/margins", "rewards/accuracies"))


def test_replacing_a_run_never_leaves_half_of_it_under_its_name(tmp_path):
    folder = tmp_path / "run"
    open_run(folder, {"objective": "old"}, {}, None)
    (folder / "checkpoint-1").mkdir()

    killed = patch("prefopt.train.run_folder.shutil.rmtree", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        open_run(folder, {"objective": "new"}, {}, None)

    assert not folder.exists()
    open_run(folder, {"objective": "newest"}, {}, None)
    (folder / "checkpoint-1").mkdir()
    open_run(folder, {"objective": "last"}, {}, None)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert not (folder / "checkpoint-1").exists()
