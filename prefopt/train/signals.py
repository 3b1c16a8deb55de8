"""Signals that ask this process to stop, and the exit code that says it did.

Signals belong to the whole process, and so does `SIGNALS`. Light to import: the command line
listens before it loads anything.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

STOPPED_EXIT_CODE = os.EX_TEMPFAIL
"""75, which sysexits.h calls a temporary failure: `try again later`. Neither Python, torchrun nor a
shell leaves with it on its own account."""
_INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
SECONDS_OF_ONE_SIGNAL = 1.0
"""Within this time a terminal and a launcher may pass on one and the same key press."""


class StopReason(Enum):
    """Why a run stops before its end."""

    SIGNAL = "a signal"
    INTERRUPT = "an interrupt"
    TIME_LIMIT = "training.max_minutes"

    @property
    def exit_code(self) -> int:
        """What the command leaves with: 130 for Ctrl-C, as from a shell, otherwise 75."""
        interrupted = self is StopReason.INTERRUPT
        return _INTERRUPTED_EXIT_CODE if interrupted else STOPPED_EXIT_CODE


REASONS = {
    signal.SIGTERM: StopReason.SIGNAL,
    signal.SIGUSR1: StopReason.SIGNAL,
    signal.SIGINT: StopReason.INTERRUPT,
}
"""The signals that ask to stop: of schedulers, of slurm's --signal, and of a terminal."""


class Stopped(BaseException):
    """The command leaves because it was asked to; nothing that handles errors may hold it up."""

    def __init__(self, reason: StopReason, line: str, *, has_saved: bool) -> None:
        """Takes what to say, and whether all processes have agreed and saved."""
        super().__init__(line)
        self.reason = reason
        self.has_saved = has_saved


class Signals:
    """What this process has been asked by signals while it listens.

    Before training has begun a signal ends the command at once, as `Stopped`. From then on it is
    kept for the end of the step. A second one ends the process where it stands.
    """

    def __init__(self) -> None:
        """Does not listen yet."""
        self.asked: StopReason | None = None
        self._asked_at = 0.0
        self._is_kept = False
        self._stopped: Stopped | None = None
        self._listener = 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle the signals in this process, and in none that it forks."""
        self.asked, self._is_kept, self._listener = None, False, os.getpid()
        before = {number: signal.signal(number, self._handle) for number in REASONS}
        try:
            yield
        except Exception as error:
            # A library that was being imported may have made an error of its own of it.
            if self._stopped is not None:
                raise self._stopped from error
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.asked = self._stopped = None

    def keep(self) -> None:
        """From now on leave a signal to whoever looks at `asked`."""
        self._is_kept = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        reason = REASONS[signal.Signals(number)]
        if os.getpid() != self._listener:
            os._exit(reason.exit_code)
        if self.asked is None:
            self.asked, self._asked_at = reason, time.monotonic()
            if not self._is_kept:
                line = f"{signal.Signals(number).name} before the first step: nothing to save."
                self._stopped = Stopped(reason, line, has_saved=False)
                raise self._stopped
        elif time.monotonic() - self._asked_at > SECONDS_OF_ONE_SIGNAL:
            sys.stderr.flush()
            os._exit(self.asked.exit_code)


SIGNALS = Signals()
"""Those of this process."""
