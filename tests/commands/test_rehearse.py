"""A dry run takes one step and fails as the run would, and keeps nothing."""

import re
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from prefopt.cli import main
from prefopt.commands.rehearse import rehearse
from prefopt.errors import UserError
from prefopt.train.guard import NonFiniteLossError
from prefopt.train.trainer import PreferenceTrainer
from tests.support.runs import LORA, policy, recipe, run
from tests.support.tiny import save_tiny_model, write_pairs

SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that lies there, besides the token cache."""
    cache = folder / "cache"
    files = [path for path in folder.rglob("*") if path.is_file() and cache not in path.parents]
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": LORA, "data": {"evaluation": {"num_groups": 2}}},
        {"objective": {"name": "simpo"}, "training": {**SAVES, "eval_strategy": "no"}},
        {"training": {"report_to": "tensorboard", "max_steps": 5, "logging_steps": 3}},
    ],
    ids=["full", "lora with evaluation", "no reference", "tracked"],
)
def test_a_dry_run_leaves_nothing(folder, capsys, sections):
    before = files_of(folder)

    rehearse(recipe(folder, **sections))

    assert files_of(folder) == before
    said = capsys.readouterr().out
    assert f"dry run: the run would start in {folder / 'run'}" in said
    num_steps = sections.get("training", {}).get("max_steps", 2)
    assert f"step 1 of {num_steps} works" in said
    assert re.search(r"with at most [\d.]+ [MG]B of memory", said)
    assert ("the reference's log-probs" in said) == ("objective" not in sections)


def test_the_step_is_that_of_the_run(folder):
    # Six steps decay the rate; a run of one step would not take the same one.
    training = {"max_steps": 6, "lr_scheduler_type": "linear", "max_grad_norm": 0.01}
    straight = []
    step = PreferenceTrainer.training_step

    def noted(trainer, *args, **kwargs):
        straight.append(trainer.state.global_step)
        loss = step(trainer, *args, **kwargs)
        gradients = [p.grad.clone() for p in policy(trainer).parameters()]
        straight[-1] = (loss.item(), gradients)
        return loss

    with patch.object(PreferenceTrainer, "training_step", noted):
        rehearse(recipe(folder, training=training))
        assert len(straight) == 1
        run(folder, training=training)

    (loss, gradients), (other_loss, other_gradients) = straight[:2]
    assert loss == pytest.approx(other_loss, rel=1e-6)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-7)


def test_what_would_be_gone_on_from_or_replaced_is_said_and_kept(folder, capsys):
    run(folder, training=SAVES)
    before = files_of(folder)

    rehearse(recipe(folder, training=SAVES), resume="auto")
    last = folder / "run" / "checkpoint-6"
    assert f"dry run: the run would go on from {last}" in capsys.readouterr().out
    rehearse(recipe(folder, training=SAVES), overwrite=True)
    said = f"dry run: the run would replace what {folder / 'run'} holds"
    assert said in capsys.readouterr().out

    with pytest.raises(UserError, match=r"holds another run: objective\.beta"):
        rehearse(recipe(folder, training=SAVES, objective={"name": "dpo", "beta": 0.3}))
    assert files_of(folder) == before


def test_a_step_that_is_not_finite_is_written_where_its_error_says(folder):
    with pytest.raises(NonFiniteLossError, match="step 1: the gradient norm is nan") as error:
        rehearse(recipe(folder, objective={"name": "dpo", "beta": 1e38}))

    (scratch,) = (folder / "scratch").iterdir()
    named = re.findall(rf"{re.escape(str(scratch))}\S*json", str(error.value))
    assert named
    assert Path(named[0]).is_file()


def test_the_command_line_takes_it_as_an_option(folder, capsys):
    (folder / "recipe.yaml").write_text(
        f"model: {{path: {folder / 'model'}}}\n"
        f"data: {{sources: [{{path: {folder / 'pairs.jsonl'}}}], cache_dir: {folder / 'cache'}}}\n"
        "objective: {name: dpo}\n"
        f"training: {{output_dir: {folder / 'run'}, groups_per_step: 4}}\n"
    )

    main_code = None
    try:
        main(["train", str(folder / "recipe.yaml"), "--dry-run"])
    except SystemExit as ended:
        main_code = ended.code

    assert main_code == 0
    # 12 pairs, 4 a step, 3 epochs by the default of transformers.
    assert "step 1 of 9 works" in capsys.readouterr().out
    assert not (folder / "run").exists()
