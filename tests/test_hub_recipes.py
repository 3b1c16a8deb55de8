"""Every recipe for a model of the hub trains, on that model in small and rows of its data."""

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefopt.commands.train import train
from prefopt.config import Recipe, load_recipe
from prefopt.objectives import registered
from tests.support.hub_data import NUM_ROWS, load_dataset, question
from tests.support.hub_models import R1_ASSISTANT, R1_USER, hub_tokenizer, save_hub_model
from tests.support.tiny import write_jsonl

BOOK = Path(__file__).parents[1] / "recipes"
RECIPES = [
    path
    for name in registered()
    for path in sorted((BOOK / name).glob("*.yaml"))
    if path.name != "tiny.yaml"
]
STEPS = 2
# A graphics card's memory is what they page.
NEEDS_GPU = {"paged_adamw_32bit": "adamw_torch"}


def name_of(path: Path) -> str:
    return str(path.relative_to(BOOK).with_suffix(""))


@pytest.fixture(autouse=True)
def stand_in_for_the_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.load_dataset", load_dataset)


def in_small(path: Path, folder: Path) -> Recipe:
    """The recipe as it is, but for what this machine lacks and for its length."""
    written = load_recipe(path)
    model = save_hub_model(written.model.path, folder / "model")
    arguments = written.training.arguments
    changes = [
        f"model.path={model}",
        f"data.cache_dir={folder / 'cache'}",
        f"training.output_dir={folder / 'run'}",
        f"training.max_steps={STEPS}",
        "training.groups_per_step=4",
        "training.logging_steps=1",
        "training.report_to=none",
    ]
    if written.model.tokenizer is not None:
        hub_tokenizer(written.model.tokenizer).save_pretrained(folder / "tokenizer")
        changes.append(f"model.tokenizer={folder / 'tokenizer'}")
    for number, source in enumerate(written.data.sources):
        if source.path == "rollouts.jsonl":
            rollouts = write_rollouts(folder / source.path, written.model.path)
            changes.append(f"data.sources.{number}.path={rollouts}")
    if written.data.evaluation is not None and written.data.evaluation.num_groups:
        changes.append("data.evaluation.num_groups=2")
    if arguments.get("eval_strategy") == "steps":
        changes.append(f"training.eval_steps={STEPS}")
    if arguments.get("optim") in NEEDS_GPU:
        changes.append(f"training.optim={NEEDS_GPU[arguments['optim']]}")
    return load_recipe(path, changes)


def write_rollouts(path: Path, model: str) -> Path:
    """Sampled answers with their thoughts and a weight per token, as text."""
    tokenizer = hub_tokenizer(model)
    rows = []
    for number in range(NUM_ROWS):
        prompt = f"{R1_USER}{question(number)}{R1_ASSISTANT}<think>\n"
        answers = [f"Step {i}. So.\n</think>\n\nIt is {i}." for i in range(4)]
        counts = [len(tokenizer.encode(each, add_special_tokens=False)) + 1 for each in answers]
        rows.append(
            {
                "prompt": prompt,
                "responses": answers,
                "scores": [float(i % 2) for i in range(4)],
                "token_weights": [[float(i % 3 == 0) for i in range(count)] for count in counts],
            }
        )
    return write_jsonl(path, rows)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_hub_recipe_trains_its_model_in_small(path: Path, tmp_path: Path):
    recipe = in_small(path, tmp_path)
    if recipe.model.quantization:
        pytest.importorskip("bitsandbytes")

    with patch("prefopt.commands.train.plot_curves"):
        train(recipe)

    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert any("eval_loss" in line for line in lines) == (recipe.data.evaluation is not None)
    assert_trained(recipe, run)


def assert_trained(recipe: Recipe, run: Path) -> None:
    """The folder loads without prefopt, and is not what training began with."""
    if recipe.adapter is None:
        model = AutoModelForCausalLM.from_pretrained(run)
        trained, start = (
            load_file(folder / "model.safetensors") for folder in (run, Path(recipe.model.path))
        )
        assert trained.keys() == start.keys()
        assert any(not torch.equal(trained[name], start[name].float()) for name in start)
    else:
        model = AutoModelForCausalLM.from_pretrained(recipe.model.path)
        model = PeftModel.from_pretrained(model, run)
        adapter = load_file(run / "adapter_model.safetensors")
        # Each of these starts at 0.
        ends = [value for name, value in adapter.items() if "lora_B" in name]
        assert len(ends) > 0
        assert all(value.any() for value in ends)
    assert model(input_ids=torch.arange(20, 40)[None]).logits.isfinite().all()


def test_unknown_models_and_data_are_named():
    with pytest.raises(LookupError, match=r"some/model is not in .*hub_models"):
        hub_tokenizer("some/model")
    with pytest.raises(LookupError, match=r"some/data \(configuration None\) is not in .*hub_data"):
        load_dataset("some/data", split="train")
    with pytest.raises(LookupError, match=r"Anthropic/hh-rlhf has no split eval, but train, test"):
        load_dataset("Anthropic/hh-rlhf", split="eval")
