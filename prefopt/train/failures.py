"""When processes of a launch fail one after another, the first one speaks.

The failure of one breaks the connections of all others, whose tracebacks then say nothing but that.
Light to import, as everything is that the command line needs before it runs a command.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

SECONDS_FOR_FIRST = 5.0
"""How long those that fail later stay, so that the launcher sees the first one leave first."""
_SECONDS_FOR_STORE = 5


def is_launched() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """The number of this process in its launch."""
    return int(os.environ.get("RANK", "0"))


def leaves_first() -> bool:
    """Whether no process of the launch has asked this before, by the store that all of them share.

    Also where nobody answers: then each speaks for itself.
    """
    if not is_launched():
        return True
    from torch.distributed import DistError, TCPStore

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            wait_for_workers=False,
            timeout=timedelta(seconds=_SECONDS_FOR_STORE),
        )
        return store.add("prefopt/left", 1) == 1
    except DistError as error:
        _say(f"process {rank()}: the launcher's store is gone: {error}\n")
        return True


def leave(exit_code: int) -> None:
    """End a process of a launch here; elsewhere return.

    On the usual way out, connections to processes that are gone are taken down, which can abort
    or wait for ever.
    """
    if is_launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


@contextmanager
def first_one_speaks() -> Iterator[None]:
    """End a process of a launch by an error that nobody catches; only the first one explains it."""
    try:
        yield
    except Exception as error:
        if not is_launched():
            raise
        if leaves_first():
            _say(f"process {rank()} failed:\n{''.join(traceback.format_exception(error))}")
        else:
            last = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
            _say(f"process {rank()} ends after another one, with {last}\n")
            time.sleep(SECONDS_FOR_FIRST)
        leave(1)


def _say(text: str) -> None:
    # In one piece, so that lines of other processes do not come between.
    sys.stderr.write(text)
    sys.stderr.flush()
