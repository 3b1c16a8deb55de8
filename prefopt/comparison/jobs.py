"""Training as jobs: one command per run, so many at once, each going on where it stopped."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import yaml

from prefopt.comparison.plan import Run
from prefopt.errors import UserError
from prefopt.evaluation.files import write_whole
from prefopt.train.run_folder import MODEL_FILES, RECIPE_FILE

_LAST_LINES = 3
_RECORDS_IN_CACHE = re.compile(r"^reference: ([\d,]+) records with .* in the cache", re.MULTILINE)


class Jobs:
    """Trains what is not trained yet."""

    def __init__(
        self,
        folder: Path,
        launcher: Sequence[str],
        num_at_once: int,
        say: Callable[[str], None],
        *,
        keeps_open: Sequence[int] = (),
    ) -> None:
        """Runs nothing yet.

        Args:
            folder: of the comparison; recipes and logs lie in it.
            launcher: words before `-m prefopt train RECIPE`; none for this Python.
            num_at_once: commands that run at the same time.
            say: prints a line.
            keeps_open: descriptors that commands inherit, such as that of a lock.
        """
        self._keeps_open = tuple(keeps_open)
        self._recipes, self._logs = folder / "recipes", folder / "logs"
        self._launcher = list(launcher) or [sys.executable]
        self._num_at_once = num_at_once
        self._say = say

    def precompute(self, runs: Sequence[Run]) -> dict[str, int]:
        """Fill the reference cache, once for all runs that read the same log-probs.

        Returns:
            Name of a run that reads the cache -> records whose log-probs it would compute alone.

        Raises:
            UserError: if the command fails.
        """
        records: dict[str, int] = {}
        found: dict[str, int] = {}
        for run in runs:
            if not reads_cache(run):
                continue
            key = reference_key(run)
            if key not in records:
                log = self._command("precompute", run, f"reference-{len(records) + 1}", [])
                said = _RECORDS_IN_CACHE.findall(log.read_text(encoding="utf-8"))
                assert said, f"precompute says how many records there are in {log}"
                records[key] = int(said[-1].replace(",", ""))
            found[run.name] = records[key]
        return found

    def train(self, runs: Sequence[Run]) -> None:
        """Train all runs that are not finished.

        Raises:
            UserError: if a run fails: with its name, its last words and its log. Runs that are
                under way end first, no other one is started, and the same command goes on.
        """
        todo = [run for run in runs if not is_finished(run)]
        if len(todo) < len(runs):
            self._say(f"{len(runs) - len(todo)} of {len(runs)} runs are there")
        with ThreadPoolExecutor(self._num_at_once) as pool:
            waiting = list(reversed(todo))
            under_way = set[Future[None]]()
            failed: BaseException | None = None
            while under_way or (waiting and failed is None):
                while waiting and failed is None and len(under_way) < self._num_at_once:
                    under_way.add(pool.submit(self._train_one, waiting.pop()))
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                failed = failed or next((f.exception() for f in done if f.exception()), None)
        if failed is not None:
            raise failed

    def _train_one(self, run: Run) -> None:
        self._command("train", run, run.name, ["--resume", "auto"])
        self._say(f"trained {run.name}")

    def _command(self, command: str, run: Run, name: str, options: Sequence[str]) -> Path:
        recipe = self._recipes / f"{name}.yaml"
        text = yaml.safe_dump(run.recipe.resolved(), sort_keys=False, allow_unicode=True)
        write_whole(recipe, text)
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.txt"
        words = [*self._launcher, "-m", "prefopt", command, str(recipe), *options]
        with log.open("a", encoding="utf-8") as file:
            # Ctrl-C reaches the command as well, which then saves what it has.
            code = subprocess.run(
                words,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ,
                check=False,
                pass_fds=self._keeps_open,
            ).returncode
        if code != 0:
            raise UserError(
                f"{command} of {name} failed with exit code {code}: {_last_words(log)} All of it "
                f"is in {log}; the same command goes on from here."
            )
        return log


def is_finished(run: Run) -> bool:
    """Whether the run's folder holds the trained model of this very recipe.

    Raises:
        UserError: if it holds another run.
    """
    file = run.folder / RECIPE_FILE
    if not file.is_file():
        return False
    stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    if stored != run.recipe.resolved():
        raise UserError(
            f"{run.folder} holds a run of another recipe. Give a new output_dir, or remove it."
        )
    return any((run.folder / name).is_file() for name in MODEL_FILES)


def reads_cache(run: Run) -> bool:
    """Whether training takes log-probs of the reference from the cache."""
    recipe, section = run.recipe, run.recipe.reference
    return (
        recipe.objective.needs_reference
        and not recipe.objective.needs_reference_distribution
        # The cache would round them.
        and recipe.model.dtype != "float64"
        and (section is None or section.cache != "off")
    )


def records_needed(run: Run, num_records: int) -> int:
    """How many of the records with reference log-probs the run trains on, at most all."""
    training = run.recipe.training
    max_steps = int(training.arguments.get("max_steps", -1))
    if max_steps > 0:
        groups = [training.groups_of(role) for role in run.recipe.data.roles or [""]]
        return min(num_records, max_steps * sum(groups))
    num_epochs = float(training.arguments.get("num_train_epochs", 1))
    return math.ceil(num_records * min(1.0, num_epochs))


def reference_key(run: Run) -> str:
    """Equal for runs whose reference log-probs are the same numbers."""
    resolved = run.recipe.resolved()
    return str([resolved.get(name) for name in ("model", "data", "reference", "adapter")])


def _last_words(log: Path) -> str:
    """The end of a log, from the command's own error on if it has one there."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
    words = [line for line in lines if line][-_LAST_LINES:]
    errors = [i for i, line in enumerate(words) if line.startswith("error: ")]
    said = " | ".join(words[errors[-1] if errors else 0 :]) or "it said nothing"
    return said if said.endswith(".") else f"{said}."
