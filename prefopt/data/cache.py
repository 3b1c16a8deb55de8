"""Folders that are made once and then only read, by any number of processes."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from prefopt.errors import UserError


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, after `build(partial)` has filled it if it was not there.

    A lock beside it makes other processes wait for the first. `build` works in a folder of another
    name that is renamed at the end, so that what can be read is whole.

    Raises:
        UserError: if the disk is full or the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    with errors_of_cache_are_one_line(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _build(folder, build)
    return folder


@contextmanager
def errors_of_cache_are_one_line(folder: Path) -> Iterator[None]:
    """Say what a user can mend where a folder of the cache cannot be written.

    Raises:
        UserError: if the disk is full or the cache is not ours to write; other errors as they are.
    """
    try:
        yield
    except OSError as error:
        raise _explained(error, folder) from error


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _explained(error: OSError, folder: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{folder.parent}: no space left on the disk. Free some, or set data.cache_dir "
            "or PREFOPT_CACHE to another one."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"{folder.parent}: the cache cannot be written ({error.strerror}). Set data.cache_dir "
            "or PREFOPT_CACHE to a folder that can."
        )
    return error
