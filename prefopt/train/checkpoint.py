"""Checkpoints that are complete or absent, and what they hold beyond the Trainer's own state."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from prefopt.errors import UserError
from prefopt.models.reference import CachedReference

if TYPE_CHECKING:
    from prefopt.train.trainer import PreferenceTrainer

METRICS_FILE = "metrics.jsonl"
_STATE_FILE = "prefopt_state.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    final = run_folder / f"checkpoint-{trainer.state.global_step}"
    if trainer.args.should_save:
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    with a_full_disk_is_one_line(final):
        save()
        if trainer.state.best_global_step == trainer.state.global_step:
            trainer.state.best_model_checkpoint = str(final)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            _complete(trainer, staging / final.name, final)
    if trainer.args.should_save:
        rotate_checkpoints(
            output_dir=str(run_folder),
            save_total_limit=trainer.args.save_total_limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
            use_mtime=False,
        )
    trainer.accelerator.wait_for_everyone()


@contextmanager
def a_full_disk_is_one_line(target: Path) -> Iterator[None]:
    """Remove what is half-written below the run's staging folder, and say so if the disk is full.

    Args:
        target: what is being saved, in the run's folder.

    Raises:
        UserError: instead of whatever the writing library raises when there is no space.
    """
    folder = target.parent
    try:
        yield
    except Exception as error:
        is_full = _disk_is_full(error, folder)
        shutil.rmtree(staging_folder(str(folder)), ignore_errors=True)
        if not is_full:
            raise
        last = get_last_checkpoint(str(folder))
        kept = f"The last good one is {last}. " if last else "There is no checkpoint before it. "
        raise UserError(
            f"training.output_dir: no space left while saving {target}. {kept}"
            "Free some space, or lower training.save_total_limit, and go on with --resume."
        ) from error


def _complete(trainer: "PreferenceTrainer", written: Path, final: Path) -> None:
    trainer.state.save_to_json(str(written / TRAINER_STATE_NAME))
    metrics = final.parent / METRICS_FILE
    state = {
        "window": asdict(trainer.window),
        "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        "cached_reference": isinstance(trainer.reference, CachedReference),
        **facts_of_split(trainer),
    }
    (written / _STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    for path in (*written.rglob("*"), written):
        _fsync(path)
    if final.exists():
        os.replace(final, written.parent / "replaced")
    os.replace(written, final)
    _fsync(final.parent)
    shutil.rmtree(written.parent)


def facts_of_split(trainer: "PreferenceTrainer") -> dict[str, int]:
    """What changes the last bits of a result: to resume exactly, these must stay as they are."""
    return {
        "num_threads": torch.get_num_threads(),
        "num_processes": trainer.accelerator.num_processes,
        "tokens_per_micro_batch": trainer.tokens_per_micro_batch,
    }


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
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return True
    # torch and safetensors report a failed write as errors of their own.
    says_so = any(f"os error {code}" in str(error) for code in _NO_SPACE)
    return says_so or shutil.disk_usage(folder).free < 2**20


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
