"""Trains a few recipes and goes on with them, in one launch; test_resume_modes.py compares.

Usage, below accelerate launch: resume_all.py FOLDER LEG...

A leg is `fresh`, which trains from the start and keeps the result as `straight`, or a step: all
that lies behind that step's checkpoint is removed and the run goes on from there.
"""

import os
import shutil
import sys
from pathlib import Path

from prefopt.commands.train import leave_together, train
from prefopt.config import Recipe
from tests.invariants.train_all import ADAPTERS, OBJECTIVES

STEPS, SAVE_EVERY = 6, 2
KINDS = {
    "dpo-full": (OBJECTIVES["dpo"], ADAPTERS["full"]),
    "dpo-lora": (OBJECTIVES["dpo"], ADAPTERS["lora"]),
    "all_traits-full": (OBJECTIVES["all_traits"], ADAPTERS["full"]),
}


def main(folder: Path, legs: list[str]) -> None:
    for kind, (objective, adapter) in KINDS.items():
        sections = {
            "model": {"path": str(folder.parent / "model")},
            "data": {
                "sources": [{"path": str(folder.parent / "pairs.jsonl")}],
                "evaluation": {"num_groups": 5},
                "cache_dir": str(folder.parent / "cache"),
            },
            "objective": objective,
            "training": {
                "output_dir": str(folder / kind / "run"),
                "groups_per_step": 7,
                "tokens_per_micro_batch": 100,
                "max_steps": STEPS,
                "learning_rate": 1.0e-3,
                "save_strategy": "steps",
                "save_steps": SAVE_EVERY,
                "eval_strategy": "epoch",
                # The window is open at the first checkpoint.
                "logging_steps": 3,
            },
        }
        if adapter is not None:
            sections["adapter"] = adapter
        for leg in legs:
            if leg != "fresh":
                _on_first(_cut_back, folder / kind, int(leg))
            train(Recipe.model_validate(sections), resume=None if leg == "fresh" else "auto")
            if leg == "fresh":
                _on_first(shutil.copytree, folder / kind / "run", folder / kind / "straight")
    leave_together()


def _on_first(action, *arguments) -> None:
    # Others need not wait: they learn from the first process what lies in the folder.
    if os.environ.get("RANK", "0") == "0":
        action(*arguments)


def _cut_back(folder: Path, step: int) -> None:
    """Leave of the run what a kill right after that step's checkpoint would have left."""
    run = folder / "run"
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    for file in (*run.glob("*.safetensors"), *run.glob("*config.json"), run / "curves.png"):
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
