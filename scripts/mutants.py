"""Plants a sample of small bugs in objectives and ops, and counts those that a test catches.

Usage: python scripts/mutants.py [--seed 0] [--count 200] [--workers 2] [WORD ...], from the
project's root; words keep those of the sample whose place or text has one of them. Exit code 1 if
fewer than 90 % are caught. A periodic check of the tests, not part of the gate.

Which test runs which line is measured once. A bug then meets the tests that run its line: first
those of the module's own test file, then the others, until one fails. A process that has imported
torch is forked for each bug, so nothing is copied and nothing on disk changes.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage
from mutations import Mutant, mutants_of

ROOT = Path(__file__).parents[1]
TESTS = (
    *("tests/objectives", "tests/ops", "tests/test_types.py"),
    *("tests/models/test_head.py", "tests/models/test_kernels.py", "tests/models/test_layout.py"),
)
# What a class declares runs at import, and these tests read it without a line of the class.
OF_DECLARATIONS = "tests/objectives/test_parameters.py::"
# Runs on CUDA alone.
APART = ("varlen.py",)
LEAST_CAUGHT = 0.9
# Imported before the first fork, since every test would import them again.
HEAVY = ("torch", "pydantic", "beartype", "transformers.models.llama.modeling_llama", "peft")
MAX_WALL_SECONDS = 600
FOLDER = ROOT / "runs" / "mutants"


class Lines:
    """Which tests run which lines of which files, and how long each test takes."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.seconds: dict[str, float] = found["seconds"]
        self._tests: dict[str, dict[str, list[str]]] = found["tests"]

    def of(self, mutant: Mutant) -> list[list[str]]:
        """The tests that can see a bug, the quick ones first: own file, then the others."""
        by_line = self._tests.get(str(mutant.path), {})
        first, last = mutant.lines
        tests = {test for n in range(first, last + 1) for test in by_line.get(str(n), [])}
        if not tests - {""}:
            # Runs when the module is imported, or stands within a line that was counted elsewhere.
            tests = {test for found in by_line.values() for test in found}
            tests |= {test for test in self.seconds if test.startswith(OF_DECLARATIONS)}
            tests = tests if tests - {""} else set(self.seconds)
        tests = sorted(tests - {""}, key=lambda test: self.seconds[test])
        own = [test for test in tests if f"/test_{mutant.path.stem}.py::" in test]
        others = [test for test in tests if test not in set(own)]
        return [some for some in (own, others) if some]


class Recorder:
    """A plugin of pytest that notes the lines and the time of each test."""

    def __init__(self, to: Path) -> None:
        self.to = to
        folders = [str(ROOT / "prefopt" / name) for name in ("objectives", "ops")]
        self.coverage = Coverage(data_file=None, config_file=False, source=folders)
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Count from the first import of ours on."""
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Lines belong to the test that runs, and to none between two."""
        self.coverage.switch_context(item.nodeid)
        start = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - start
        self.coverage.switch_context("")
        return result

    def pytest_sessionfinish(self) -> None:
        """Write what was found."""
        self.coverage.stop()
        data = self.coverage.get_data()
        tests = {path: data.contexts_by_lineno(path) for path in data.measured_files()}
        self.to.write_text(json.dumps({"seconds": self.seconds, "tests": tests}))


class Chosen:
    """A plugin of pytest that runs some tests, in their order."""

    def __init__(self, tests: Iterable[str]) -> None:
        self.order = {test: i for i, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the others out."""
        kept = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(kept, key=lambda item: self.order[item.nodeid])


def plant(path: Path, source: bytes) -> None:
    """From now on a file is imported as this source; none of prefopt may be imported yet."""
    usual = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> Any:
        found = loader.get_filename(name)
        if found == str(path):
            return loader.source_to_code(source, found)
        return usual(loader, name)

    SourceFileLoader.get_code = get_code


def forked(
    work: Callable[[], int], cpu_seconds: int | None, *, log: Path = Path(os.devnull)
) -> int:
    """What the work returns in a process of its own; below 0 if it had to be killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            if cpu_seconds is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
                signal.alarm(MAX_WALL_SECONDS)
            printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_tests(files: Iterable[str], *plugins: object) -> int:
    """The exit code of pytest, which stops at the first failure."""
    # What was imported before the fork keeps its own assertions.
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    return int(pytest.main([*options, *files], plugins=plugins))


def is_caught(mutant: Mutant, lines: Lines) -> bool:
    """Whether a test fails, a test file cannot be imported, or the tests do not end."""

    def work(tests: list[str]) -> int:
        plant(mutant.path, mutant.source)
        return run_tests(sorted({test.split("::")[0] for test in tests}), Chosen(tests))

    for tests in lines.of(mutant):
        limit = 60 + 3 * int(sum(lines.seconds[test] for test in tests))
        code = forked(lambda tests=tests: work(tests), limit)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return True
    return False


def measure() -> Lines:
    """Run all tests without a bug, or read what they did the last time on the same files."""
    files = [path for name in ("prefopt", "tests") for path in (ROOT / name).rglob("*.py")]
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()
    to, log = FOLDER / f"{state[:16]}.json", FOLDER / "log"
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not to.is_file():
        code = forked(lambda: run_tests(TESTS, Recorder(to)), None, log=log)
        if code != 0:
            to.unlink(missing_ok=True)
            sys.exit(f"The tests fail without any bug planted; see {log.relative_to(ROOT)}.")
    return Lines(json.loads(to.read_text()))


def sample(seed: int, count: int, words: list[str]) -> list[Mutant]:
    """The same bugs for the same seed and files."""
    paths = [
        path
        for folder in ("objectives", "ops")
        for path in sorted((ROOT / "prefopt" / folder).glob("*.py"))
        if path.name not in APART
    ]
    found = [mutant for path in paths for mutant in mutants_of(path)]
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    print(f"{len(chosen)} of {len(found)} bugs of {len(paths)} files, seed {seed}", flush=True)
    return [each for each in chosen if not words or any(word in text(each) for word in words)]


def text(mutant: Mutant) -> str:
    """One line for a reader."""
    place = f"{mutant.path.relative_to(ROOT)}:{mutant.lines[0]}"
    return f"{place}  {' '.join(mutant.before.split())}  →  {' '.join(mutant.after.split())}"


# Set before the workers are forked, and so the same in each.
_measured: list[Lines] = []


def _check(mutant: Mutant) -> tuple[Mutant, bool, float]:
    start = time.perf_counter()
    return mutant, is_caught(mutant, _measured[0]), time.perf_counter() - start


def main() -> int:
    """Plant the sample; 1 if too few are caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("words", nargs="*")
    asked = parser.parse_args()

    start = time.perf_counter()
    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    for name in HEAVY:
        importlib.import_module(name)
    mutants = sample(asked.seed, asked.count, asked.words)
    _measured.append(measure())
    print(f"{len(_measured[0].seconds)} tests in {time.perf_counter() - start:.0f} s", flush=True)

    kinds: Counter[bool] = Counter()
    with get_context("fork").Pool(asked.workers) as pool:
        for mutant, caught, seconds in pool.imap_unordered(_check, mutants):
            kinds[caught] += 1
            word = "caught  " if caught else "SURVIVED"
            print(f"{word} {seconds:5.1f} s  {text(mutant)}", flush=True)
    minutes = (time.perf_counter() - start) / 60
    share = kinds[True] / max(len(mutants), 1)
    print(f"{kinds[True]} of {len(mutants)} caught, {share:.1%}, in {minutes:.1f} minutes")
    return 0 if share >= LEAST_CAUGHT else 1


if __name__ == "__main__":
    sys.exit(main())
