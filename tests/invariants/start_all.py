"""How a launch starts, in one launch per mode; test_start.py looks at what came of it.

Usage: start_all.py FOLDER OUTPUT, below accelerate launch. The folder `other` holds another
file of the same name: the last process reads that one, as on a node of its own.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from accelerate.utils import gather_object

import prefopt.commands.before as before
import prefopt.commands.train as command
from prefopt.config import Recipe
from prefopt.errors import UserError

STEPS, GROUPS_PER_STEP = 4, 2


def recipe_of(folder: Path, output: Path, cache: str = "cache", **training: object) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": str(folder / "model")},
            "data": {
                "sources": [{"path": "pairs.jsonl"}],
                "evaluation": {"num_groups": 1},
                "cache_dir": str(output / cache),
            },
            "objective": {"name": "dpo"},
            "training": {
                "output_dir": str(output / "run"),
                "groups_per_step": GROUPS_PER_STEP,
                "max_steps": STEPS,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "save_strategy": "no",
                "eval_strategy": "steps",
                "eval_steps": 2,
                **training,
            },
        }
    )


def refusals(action: Callable[[], object]) -> list[str]:
    """What every process was told."""
    told = ""
    try:
        action()
    except UserError as error:
        told = str(error)
    return gather_object([told])


def start_differently(folder: Path, output: Path, is_last: bool) -> dict[str, list[str]]:
    """What the processes are told when the last one has something else than the others."""
    told = {}
    rate = {"learning_rate": 2e-2} if is_last else {}
    told["recipe"] = refusals(lambda: command.train(recipe_of(folder, output, **rate)))

    versions = before.installed_versions() | ({"torch": "2.0.1"} if is_last else {})
    with patch.object(before, "installed_versions", lambda: versions):
        told["versions"] = refusals(lambda: command.train(recipe_of(folder, output)))

    # Every node may have a cache of its own.
    cache = "other" if is_last else "cache"
    os.chdir(folder / "other" if is_last else folder)
    told["data"] = refusals(lambda: command.train(recipe_of(folder, output, cache)))
    os.chdir(folder)
    assert not (output / "run").exists(), "a refusal began a run"
    return told


def main(folder: Path, output: Path) -> None:
    os.chdir(folder)
    rank, num_processes = (int(os.environ.get(key, "0")) for key in ("RANK", "WORLD_SIZE"))
    told = {}
    if num_processes > 1:
        told = start_differently(folder, output, is_last=rank == num_processes - 1)
    command.train(recipe_of(folder, output))
    if rank == 0:
        (output / "told.json").write_text(json.dumps(told))
    command.leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
