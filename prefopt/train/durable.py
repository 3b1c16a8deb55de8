"""Files and folders of a run that are whole or absent, also after a kill or a power cut.

What is written grows in one hidden folder of the run and is renamed when the disk holds it; what is
removed is renamed into it first. So whoever is killed leaves nothing half-written under its name.
"""

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from prefopt.errors import UserError

STAGING = ".saving"
"""Name of that folder."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTDIR)


def staging_folder(run_folder: Path) -> Path:
    """Where files grow before they appear in the run's folder, and go before they are removed."""
    return run_folder / STAGING


def clear_staging(run_folder: Path) -> None:
    """Remove what a killed process left there, and the folder itself."""
    if staging_folder(run_folder).exists():
        shutil.rmtree(staging_folder(run_folder))


def write_whole(file: Path, text: str) -> None:
    """Write a file of a run's folder; it is the old one or the new one, never a part."""
    staged = staging_folder(file.parent) / file.name
    staged.parent.mkdir(exist_ok=True)
    staged.write_text(text, encoding="utf-8")
    sync(staged)
    os.replace(staged, file)
    sync(file.parent)


def move_in(staged: Path, run_folder: Path, *, last: Collection[str] = ()) -> None:
    """Move files into a run's folder once the disk holds them all.

    Args:
        staged: the folder that holds them.
        run_folder: where they go.
        last: names of those that are moved after the others, so that they tell that all are there.
    """
    files = sorted(staged.iterdir(), key=lambda file: (file.name in last, file.name))
    for file in files:
        sync(file)
    for file in files:
        os.replace(file, run_folder / file.name)
    sync(run_folder)


def remove_whole(folder: Path) -> None:
    """Remove a folder of a run's folder: half of it never lies under its name."""
    clear_staging(folder.parent)
    staging_folder(folder.parent).mkdir()
    os.replace(folder, staging_folder(folder.parent) / folder.name)
    sync(folder.parent)
    clear_staging(folder.parent)


def sync(path: Path) -> None:
    """Wait until the disk holds the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def failed_writes_are_one_line(target: Path) -> Iterator[None]:
    """Remove what is half-written and say why, if the disk is full or the folder not writable.

    Args:
        target: what is being written, in the run's folder.

    Raises:
        UserError: instead of whatever the writing library raises then; other errors as they are.
    """
    folder = target.parent
    try:
        yield
    except Exception as error:
        why = _why_not_written(error, folder)
        shutil.rmtree(staging_folder(folder), ignore_errors=True)
        if why is None:
            raise
        raise UserError(f"training.output_dir: {why} while saving {target}. {_kept(folder)}") from (
            error
        )


def _why_not_written(error: Exception, folder: Path) -> str | None:
    if isinstance(error, UserError):
        return None
    code = error.errno if isinstance(error, OSError) else None
    # torch and safetensors report a failed write as errors of their own.
    said = str(error)
    is_full = code in _NO_SPACE or any(f"os error {each}" in said for each in _NO_SPACE)
    if is_full or (folder.exists() and shutil.disk_usage(folder).free < 2**20):
        return "no space left"
    for each in _NOT_WRITABLE:
        if code == each or f"os error {each}" in said:
            return f"cannot write ({os.strerror(each)})"
    return None


def _kept(folder: Path) -> str:
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    kept = f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."
    return f"{kept} Free some space or make it writable, and go on with --resume."
