"""Whole runs of the train command, in this process."""

import json
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from prefopt.commands.train import train
from prefopt.config import Recipe
from prefopt.train.trainer import PreferenceTrainer

TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA = {"r": 4, "alpha": 8, "target_modules": TARGETS}


def recipe(folder: Path, output: str = "run", **sections: object) -> Recipe:
    """A recipe for `folder`/model and `folder`/pairs.jsonl, dpo unless the sections differ.

    Keys of a given section come on top of those of the default one; None removes a key.
    """
    values: dict[str, dict[str, object] | None] = {
        "model": {"path": str(folder / "model")},
        "data": {
            "sources": [{"path": str(folder / "pairs.jsonl")}],
            "cache_dir": str(folder / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": str(folder / output),
            "groups_per_step": 4,
            "max_steps": 2,
            "learning_rate": 1.0e-3,
            "logging_steps": 1,
            "save_strategy": "no",
        },
    }
    for name, section in sections.items():
        if name != "objective":
            both = {**(values.get(name) or {}), **section}
            section = {key: value for key, value in both.items() if value is not None}
        values[name] = section
    return Recipe.model_validate(values)


def run(
    folder: Path,
    output: str = "run",
    *,
    resume: str | None = None,
    curves: bool = False,
    **sections: object,
) -> PreferenceTrainer:
    """Train such a recipe; without curves, which take half of the time of so short a run."""
    with nullcontext() if curves else patch("prefopt.commands.train.plot_curves"):
        return train(recipe(folder, output, **sections), resume=resume)


def logged(trainer: PreferenceTrainer, key: str) -> list[float]:
    """The values of a key in the run's metrics.jsonl, in order."""
    file = Path(trainer.args.output_dir) / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if key in line]


def policy(trainer: PreferenceTrainer) -> PreTrainedModel | PeftModel:
    """The trained model."""
    return trainer.accelerator.unwrap_model(trainer.model)


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def logits_of(model: torch.nn.Module, *, training: bool = False) -> torch.Tensor:
    """Plain logits of one fixed row, without dropout unless in training mode."""
    row = torch.arange(5, 17).unsqueeze(0)
    model.train(training)
    with torch.no_grad():
        return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
