"""The folder of a comparison, in which one command works at a time."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefopt.errors import UserError

LOCK = ".lock"
_PATIENCE = 5.0
"""Seconds that the processes of a killed command get to end."""


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Make the folder, and keep other commands out of it.

    The lock is that of an open file, so nothing is left of it when all that hold the file have
    ended, however they end.

    Yields:
        The file's descriptor; a process that inherits it holds the lock too.

    Raises:
        UserError: if another command works there, or it is no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: {folder}: {error.strerror}. Give another folder.") from None
    with (folder / LOCK).open("a", encoding="utf-8") as file:
        _lock(file.fileno(), folder)
        yield file.fileno()


def _lock(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{folder} is at work: another prefopt compare, or a run that it started, has "
                    "not ended. Wait for it, or give another output_dir."
                ) from None
        time.sleep(0.1)
