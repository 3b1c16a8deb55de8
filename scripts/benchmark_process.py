"""An arm's process, from the side of the one that drives it."""

import multiprocessing
from typing import Any

from benchmark_arms import Job, Turn
from benchmark_runs import work

_START = multiprocessing.get_context("spawn")
_SECONDS_TO_LEAVE = 60


class Process:
    """Trains one arm when it is told; `with` ends it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._log = job.folder / "log.txt"
        self._connection, theirs = _START.Pipe()
        self._process = _START.Process(target=work, args=(theirs, self._log, job.num_threads))
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, command: str) -> None:
        """Let it `check`, `tune` or `run` while this process goes on."""
        self._connection.send((command, self.job))

    def answer(self) -> Any:
        """What it says.

        Raises:
            RuntimeError: with the end of its log, if it failed.
        """
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            log = self._log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{self.job.arm.name} failed:\n{log[-3000:]}") from None

    def ask(self, command: str) -> Any:
        """Let it `check` or `tune`, and wait for what it says."""
        self.send(command)
        return self.answer()

    def start(self, job: Job) -> dict[str, float]:
        """Get ready for the first step of a job; says what memory is taken until then, in MiB."""
        self.job = job
        self.send("run")
        found: dict[str, float] = self.answer()
        return found

    def steps(self, num_steps: int) -> Turn:
        """Train so many steps."""
        self._connection.send(num_steps)
        found: Turn = self.answer()
        return found

    def close(self) -> None:
        """End it, wherever it waits."""
        if self._process.is_alive():
            self._connection.send(None)
        self._process.join(_SECONDS_TO_LEAVE)
        if self._process.is_alive():
            self._process.kill()
