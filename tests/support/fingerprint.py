"""All that a run leaves: what two runs differ in that differ in one key."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError

from prefopt.data.cache_entries import cache_entries
from prefopt.errors import UserError
from prefopt.train.signals import Stopped
from prefopt.train.trainer import PreferenceTrainer
from tests.support.runs import policy, run

# Of one and the same run they differ each time.
_CLOCKS = ("per_second", "runtime", "time", "seconds")


def fingerprint(folder: Path, sections: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of a run with these sections, in a folder with a model and its data.

    A run that ends in an error is known by its kind: the message may name the key.
    """
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    verbosity = transformers.logging.get_verbosity()
    ended, state = "", {}
    try:
        state = _state(run(folder, "run", **sections))
    except (UserError, ValidationError, Stopped, ArithmeticError) as error:
        ended = type(error).__name__
    finally:
        transformers.logging.set_verbosity(verbosity)
        torch.use_deterministic_algorithms(False)
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {
        "ended": ended,
        "state": state,
        "files": [_name(path, output) for path in files],
        "weights": [
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.suffix == ".safetensors"
        ],
        "metrics": _metrics(output / "metrics.jsonl"),
        "cached": sorted({entry.kind for entry in cache_entries(folder / "cache")}),
    }


def _name(path: Path, output: Path) -> str:
    """A file's place; that of a tracker holds the hour, the process and the machine."""
    name = str(path.relative_to(output))
    return "events" if "tfevents" in name else name


def _state(trainer: PreferenceTrainer) -> dict[str, Any]:
    """What a run does to the process and to its model."""
    model = policy(trainer)
    layer = next(module for module in model.modules() if hasattr(module, "gradient_checkpointing"))
    recomputing = getattr(layer, "_gradient_checkpointing_func", None)
    return {
        "verbosity": transformers.logging.get_verbosity(),
        "is_deterministic": torch.are_deterministic_algorithms_enabled(),
        "recomputes": layer.gradient_checkpointing,
        "recomputes_with": getattr(recomputing, "keywords", None) and str(recomputing.keywords),
        "num_workers": trainer.get_train_dataloader().num_workers,
        "num_hooks": sum(len(module._forward_hooks) for module in model.modules()),
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {key: value for key, value in row.items() if not any(clock in key for clock in _CLOCKS)}
        for row in rows
    ]
