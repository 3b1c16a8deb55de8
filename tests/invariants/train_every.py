"""Trains every objective for one step of plain gradient descent and keeps the gradients.

Usage: train_every.py FOLDER TOKENS_PER_MICRO_BATCH LAYOUT, below accelerate launch. FOLDER.parent
holds what `write_inputs` makes; FOLDER gets gradients.safetensors and facts.json.
"""

import json
import random
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from prefopt.commands.train import leave_together, train
from prefopt.config import Recipe
from prefopt.objectives import build, registered
from tests.support.tiny import random_text, save_tiny_model, write_jsonl

GROUPS_PER_STEP = 7


def sections() -> dict[str, dict[str, object]]:
    """Every configuration that the objectives' own tests know, by a name of its own."""
    return {
        f"{name}-{i}": section
        for name in registered()
        for i, section in enumerate(import_module(f"tests.objectives.test_{name}").CASES)
    }


def write_inputs(folder: Path) -> None:
    """Two models; lists with scores of 0 to 1, the same of 0 to 10, and labelled completions."""
    save_tiny_model(folder / "model")
    # If the policy were its own reference, every weight and baseline of a step would be trivial.
    save_tiny_model(folder / "reference", seed=1)
    generator = random.Random(0)
    shares, points, labels = [], [], []
    for _ in range(24):
        responses = [random_text(generator, 2, 9) for _ in range(generator.randint(2, 4))]
        row = {
            "prompt": random_text(generator, 3, 12),
            "responses": responses,
            # One more than letters: the end of the sequence.
            "token_weights": [
                [float(generator.random() < 0.5) for _ in range(len(response) + 1)]
                for response in responses
            ],
        }
        scores = [generator.randint(0, 4) / 4 for _ in responses]
        shares.append({**row, "scores": scores})
        points.append({**row, "scores": [10 * score for score in scores]})
        labels.append(
            {
                "prompt": random_text(generator, 3, 12),
                "completion": random_text(generator, 2, 9),
                "label": generator.random() < 0.5,
            }
        )
    for name, rows in (("shares", shares), ("points", points), ("labels", labels)):
        write_jsonl(folder / f"{name}.jsonl", rows)


def gradient_of(
    section: dict[str, object],
    inputs: Path,
    folder: Path,
    tokens_per_micro_batch: int,
    layout: str,
) -> torch.Tensor:
    """What one step of the objective moves the weights by, at learning rate 1."""
    objective = build(section)
    data = "shares" if objective.score_range else "points"
    data = "labels" if objective.needs == "labels" else data
    reference = {"reference": {"path": str(inputs / "reference")}}
    recipe = Recipe.model_validate(
        {
            **(reference if objective.needs_reference else {}),
            "model": {"path": str(inputs / "model"), "dtype": "float64", "layout": layout},
            "data": {
                "sources": [{"path": str(inputs / f"{data}.jsonl")}],
                "cache_dir": str(inputs / "cache"),
            },
            "objective": section,
            "training": {
                "output_dir": str(folder / "run"),
                "groups_per_step": GROUPS_PER_STEP,
                "tokens_per_micro_batch": tokens_per_micro_batch,
                "max_steps": 1,
                "optim": "sgd",
                "learning_rate": 1.0,
                "lr_scheduler_type": "constant",
                "max_grad_norm": 0.0,
                "logging_steps": 1,
                "save_strategy": "no",
            },
        }
    )
    with patch("prefopt.commands.train.plot_curves"):
        train(recipe, overwrite=True)
    PartialState().wait_for_everyone()
    before = load_file(inputs / "model" / "model.safetensors")
    after = load_file(folder / "run" / "model.safetensors")
    PartialState().wait_for_everyone()
    return torch.cat([(before[name].double() - after[name]).flatten() for name in sorted(before)])


def main(folder: Path, tokens_per_micro_batch: int, layout: str) -> None:
    gradients = {
        name: gradient_of(section, folder.parent, folder, tokens_per_micro_batch, layout)
        for name, section in sections().items()
    }
    if PartialState().is_main_process:
        save_file(gradients, folder / "gradients.safetensors")
        facts = {"num_processes": PartialState().num_processes}
        (folder / "facts.json").write_text(json.dumps(facts))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
