"""Checkpoints that are complete or absent, and what they hold beyond the Trainer's own state."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from prefopt.errors import UserError

if TYPE_CHECKING:
    from prefopt.train.trainer import PreferenceTrainer

METRICS_FILE = "metrics.jsonl"
_STATE_FILE = "prefopt_state.json"


def staging_folder(run_folder: str) -> str:
    """Where a checkpoint grows before it appears in the run's folder."""
    return os.path.join(run_folder, ".saving")


def run_folder_of(arguments: TrainingArguments) -> Path:
    """The run's folder; recipes always name one."""
    assert arguments.output_dir is not None
    return Path(arguments.output_dir)


def save_atomically(trainer: "PreferenceTrainer", save: Callable[[], None]) -> None:
    """Save into a folder beside the checkpoints and rename it when it is complete.

    Args:
        trainer: the trainer, at the end of an optimiser step.
        save: writes `checkpoint-<step>` below `staging_folder`.

    Raises:
        UserError: if the disk is full; earlier checkpoints are untouched.
    """
    run_folder = run_folder_of(trainer.args)
    staging = Path(staging_folder(str(run_folder)))
    name = f"checkpoint-{trainer.state.global_step}"
    if trainer.args.should_save:
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    try:
        save()
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            _complete(trainer, staging / name, run_folder / name)
    except Exception as error:
        is_full = _disk_is_full(error, run_folder)
        shutil.rmtree(staging, ignore_errors=True)
        if is_full:
            last = get_last_checkpoint(str(run_folder))
            kept = f"The last good one is {last}. " if last else "There is none before it. "
            raise UserError(
                f"training.output_dir: no space left while saving {run_folder / name}. {kept}"
                "Free some space, or lower training.save_total_limit, and go on with --resume."
            ) from error
        raise
    if trainer.args.should_save:
        rotate_checkpoints(
            output_dir=str(run_folder),
            save_total_limit=trainer.args.save_total_limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
            use_mtime=False,
        )
    trainer.accelerator.wait_for_everyone()


def _complete(trainer: "PreferenceTrainer", written: Path, final: Path) -> None:
    if trainer.state.best_global_step == trainer.state.global_step:
        trainer.state.best_model_checkpoint = str(final)
    trainer.state.save_to_json(str(written / TRAINER_STATE_NAME))
    metrics = final.parent / METRICS_FILE
    state = {
        "window": asdict(trainer.window),
        "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        **machine_facts(trainer.accelerator.num_processes),
    }
    (written / _STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    for file in written.rglob("*"):
        if file.is_file():
            _fsync(file)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(written, final)
    _fsync(final.parent)
    shutil.rmtree(written.parent)


def machine_facts(num_processes: int) -> dict[str, int]:
    """What changes the last bits of a result: to resume exactly, these must stay as they are."""
    return {"num_threads": torch.get_num_threads(), "num_processes": num_processes}


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


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # torch and safetensors report a failed write as an error of their own.
    return shutil.disk_usage(folder).free < 2**20


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
