"""Checkpoints that are complete or absent, and what they hold beyond the Trainer's own state."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from prefopt.errors import UserError
from prefopt.models.reference import CachedReference
from prefopt.train.durable import (
    clear_staging,
    failed_writes_are_one_line,
    remove_whole,
    staging_folder,
    sync,
)
from prefopt.train.manifest import write_manifest

if TYPE_CHECKING:
    from prefopt.train.trainer import PreferenceTrainer

METRICS_FILE = "metrics.jsonl"
_STATE_FILE = "prefopt_state.json"


def run_folder_of(arguments: TrainingArguments) -> Path:
    """The run's folder; recipes always name one."""
    assert arguments.output_dir is not None
    return Path(arguments.output_dir)


def step_of(checkpoint: Path) -> int:
    """The optimiser steps behind a checkpoint, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints_in(run_folder: Path) -> list[Path]:
    """The checkpoints of a run by their names, newest first."""
    found = [path for path in run_folder.glob("checkpoint-*") if path.is_dir()]
    named = [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(named, key=step_of, reverse=True)


def save_atomically(trainer: "PreferenceTrainer", save: Callable[[], None]) -> None:
    """Save into a folder beside the checkpoints and rename it when it is complete.

    Args:
        trainer: the trainer, at the end of an optimiser step.
        save: writes `checkpoint-<step>` below `staging_folder`.

    Raises:
        UserError: if it cannot be written; earlier checkpoints are untouched.
    """
    run_folder = run_folder_of(trainer.args)
    final = run_folder / f"checkpoint-{trainer.state.global_step}"
    with failed_writes_are_one_line(final):
        if trainer.args.should_save:
            clear_staging(run_folder)
        trainer.accelerator.wait_for_everyone()
        save()
        if trainer.state.best_global_step == trainer.state.global_step:
            trainer.state.best_model_checkpoint = str(final)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            _complete(trainer, staging_folder(run_folder) / final.name, final)
            best = trainer.state.best_model_checkpoint
            kept = None if best is None else Path(best)
            rotate(run_folder, trainer.args.save_total_limit, kept)
    trainer.accelerator.wait_for_everyone()


def _complete(trainer: "PreferenceTrainer", written: Path, final: Path) -> None:
    trainer.state.save_to_json(str(written / TRAINER_STATE_NAME))
    metrics = final.parent / METRICS_FILE
    if metrics.exists():
        # A checkpoint tells how long this file was, so the disk must not hold less of it.
        sync(metrics)
    state = {
        "window": asdict(trainer.window),
        "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        "cached_reference": isinstance(trainer.reference, CachedReference),
        "engine": engine_of(trainer.args),
        **facts_of_split(trainer),
    }
    (written / _STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    write_manifest(written)
    # What lies there under its name is this very step: replacing it could only lose it.
    if not final.exists():
        os.replace(written, final)
        sync(final.parent)
    clear_staging(final.parent)


def rotate(run_folder: Path, limit: int | None, best: Path | None) -> None:
    """Remove the oldest checkpoints beyond `save_total_limit`, never the newest and the best."""
    if limit is None or limit <= 0:
        return
    others = checkpoints_in(run_folder)[1:]
    removable = [path for path in others if path != best]
    num_kept_anyway = 1 + len(others) - len(removable)
    for checkpoint in removable[max(limit - num_kept_anyway, 0) :][::-1]:
        remove_whole(checkpoint)


def engine_of(arguments: TrainingArguments) -> str:
    """Who writes a checkpoint: `ddp`, also on one process, `fsdp`, or `zero` and its stage."""
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is not None:
        return f"zero{plugin.deepspeed_config.get('zero_optimization', {}).get('stage', 0)}"
    is_sharded = arguments.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    return "fsdp" if is_sharded and torch.distributed.is_initialized() else "ddp"


def facts_of_split(trainer: "PreferenceTrainer") -> dict[str, int]:
    """What changes the last bits of a result: to resume exactly, these must stay as they are."""
    return {
        "num_threads": torch.get_num_threads(),
        "num_processes": trainer.accelerator.num_processes,
        "tokens_per_micro_batch": trainer.tokens_per_micro_batch,
    }


def best_of(checkpoint: Path) -> Path | None:
    """The best checkpoint so far when this one was saved, if evaluations have told one."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    best = state["best_model_checkpoint"]
    return None if best is None else Path(best)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_atomically` stored beside the Trainer's state.

    Raises:
        UserError: if the folder is no checkpoint of prefopt.
    """
    file = checkpoint / _STATE_FILE
    if not file.is_file():
        raise UserError(
            f"--resume: {checkpoint} is no checkpoint of a prefopt run. "
            "Give a checkpoint-<step> folder, or --resume auto for the newest."
        )
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return state
