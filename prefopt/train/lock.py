"""One process at a time trains in a folder."""

import errno
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from prefopt.errors import UserError

LOCK_FILE = ".lock"
"""Lies in a run's folder while it trains. The lock is the system's, and ends with its process."""

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
# Of network file systems that are mounted without locks.
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def check_not_held(folder: Path) -> None:
    """Refuse a folder in which another process trains now; changes nothing.

    Raises:
        UserError: naming the folder.
    """
    file = folder / LOCK_FILE
    if file.is_file():
        with file.open("r+", encoding="utf-8") as opened:
            _take(opened, folder)


@contextmanager
def held(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from training in a folder, until the block ends or the process does.

    Args:
        folder: a run's folder, which exists.
        say: prints a line, where the file system has no locks.

    Raises:
        UserError: if another process holds it.
    """
    file = folder / LOCK_FILE
    with file.open("a", encoding="utf-8") as opened:
        if not _take(opened, folder):
            say(f"{folder} has no file locks: nothing keeps a second process from training there")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _take(file: TextIO, folder: Path) -> bool:
    """Lock an open file until it is closed; False where the file system cannot."""
    try:
        # Not flock: what a process forks, such as the workers of a loader, would hold it as well.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            raise UserError(
                f"training.output_dir: another process trains in {folder} now. "
                "Wait for its end, stop it, or give a new folder."
            ) from error
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return False
    return True
