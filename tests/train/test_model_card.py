"""The model card: what a reader of the folder learns, and what the hub reads."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from prefopt.train.model_card import write_model_card

RECIPE: dict[str, Any] = {
    "model": {"path": "org/base"},
    "objective": {"name": "some_objective", "beta": 0.1},
    "training": {"output_dir": "runs/first"},
}


def card(folder: Path, **changes: Any) -> ModelCard:
    write_model_card(
        folder,
        **{
            "recipe": RECIPE,
            "objective_name": "some_objective",
            "base_model": "org/base",
            "datasets": ["org/preferences"],
            "is_adapter": False,
            "metrics": {"train_loss": 0.51234567},
            "versions": {"torch": "2.13.0"},
            **changes,
        },
    )
    return ModelCard.load(folder / "README.md")


def test_front_matter_says_what_the_hub_wants_to_know(tmp_path: Path):
    data = card(tmp_path).data.to_dict()

    assert data == {
        "base_model": "org/base",
        "datasets": ["org/preferences"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prefopt", "some_objective", "preference-optimization"],
    }


def test_an_adapter_is_loaded_with_peft(tmp_path: Path):
    written = card(tmp_path, is_adapter=True)

    assert written.data.library_name == "peft"
    assert "lora" in written.data.tags
    assert "AutoPeftModelForCausalLM.from_pretrained(folder)" in written.text


def test_files_and_folders_are_named_in_the_text_but_not_to_the_hub(tmp_path: Path):
    model = tmp_path / "secret" / "sft"
    model.mkdir(parents=True)

    written = card(tmp_path, base_model=str(model), datasets=["/secret/pairs.jsonl"])

    assert {"base_model", "datasets"}.isdisjoint(written.data.to_dict())
    assert "from `sft`" in written.text
    assert "on `pairs.jsonl` by" in written.text
    assert "secret" not in written.text


def test_the_recipe_comes_back_from_the_card(tmp_path: Path):
    text = card(tmp_path).text

    block = text.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(block) == RECIPE


def test_title_metrics_and_versions_are_shown(tmp_path: Path):
    text = card(tmp_path).text

    assert "# first\n" in text
    assert "| train_loss | 0.5123 |" in text
    assert text.rstrip().endswith("## Versions\n\n- torch 2.13.0")


def test_a_run_without_metrics_has_no_empty_table(tmp_path: Path):
    assert "metric" not in card(tmp_path, metrics={}).text
