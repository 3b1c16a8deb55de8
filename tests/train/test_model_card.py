"""The model card: what a reader of the folder learns, and what the hub reads."""

from pathlib import Path
from typing import Any

import pytest
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
            "has_reference": True,
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


def test_whole_paths_of_the_recipe_stay_at_home(tmp_path: Path):
    recipe = {
        **RECIPE,
        "model": {"path": "/home/ada/models/base"},
        "data": {"sources": [{"path": "/home/ada/pairs.jsonl", "weight": 2.0}]},
    }

    text = card(tmp_path, recipe=recipe).text

    assert "ada" not in text
    shown = yaml.safe_load(text.split("## Recipe\n\n```yaml\n")[1].split("```")[0])
    assert shown["model"] == {"path": "base"}
    assert shown["data"] == {"sources": [{"path": "pairs.jsonl", "weight": 2.0}]}
    assert shown["objective"] == RECIPE["objective"]


@pytest.mark.parametrize(
    ("reference", "has_reference", "line"),
    [
        ({}, True, "the model as it was when training began"),
        ({"reference": {"path": "org/judge", "cache": "auto"}}, True, "`org/judge`"),
        ({"reference": {"path": "/secret/sft"}}, True, "`sft`"),
        ({"reference": {"cache": "always"}}, True, "the model as it was when training began"),
        ({}, False, "none"),
    ],
)
def test_objective_data_and_reference_are_named(
    tmp_path: Path, reference: dict[str, Any], has_reference: bool, line: str
):
    text = card(tmp_path, recipe=RECIPE | reference, has_reference=has_reference).text

    assert (
        f"- Objective: `some_objective`\n- Data: `org/preferences`\n- Reference: {line}\n" in text
    )


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
    assert "All weights of `sft`, trained by prefopt." in written.text
    assert "- Data: `pairs.jsonl`\n" in written.text
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
