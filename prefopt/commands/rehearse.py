"""`prefopt train --dry-run`: the whole of a run's first step, and nothing of it stays."""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.commands.assemble import Start, assemble, find_out, say
from prefopt.commands.cache import size_in_words
from prefopt.commands.hush import hush
from prefopt.config import Recipe
from prefopt.models.section import ReferenceSection
from prefopt.train.guard import NonFiniteLossError
from prefopt.train.processes import on_first_process
from prefopt.train.progress import clock


def rehearse(recipe: Recipe, *, resume: str | None = None, overwrite: bool = False) -> None:
    """Take the first step of a run, update and optimiser state included, and keep nothing.

    What fails in a run before its first checkpoint fails here, in the same words: recipe, folder,
    data, models, launch, memory. The run's folder is only looked at, and trackers hear nothing; the
    cache of tokens stays, by which the run itself starts sooner. Reference log-probs are computed
    for that step alone, by a reference that stays loaded.

    Args:
        recipe: the checked recipe.
        resume: as for `train`; the checkpoint is looked for and compared, and not loaded.
        overwrite: as for `train`; nothing is removed.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    hush()
    start = find_out(recipe, resume=resume, overwrite=overwrite)
    say(f"dry run: {_beginning(start, overwrite=overwrite)}, and now only tries a first step")
    with _scratch_folder() as folder:
        start.arguments.output_dir = str(folder)
        start.arguments.report_to = []
        tried = replace(start, recipe=_without_cache(recipe), checkpoint=None)
        trainer = assemble(tried, folder, lambda: None)
        first_step = _FirstStep()
        trainer.add_callback(first_step)
        try:
            trainer.train()
        except _FirstStepTakenError:
            num_steps = trainer.state.max_steps
    whole = clock(first_step.seconds * num_steps)
    besides = ["evaluations"] * (recipe.data.evaluation is not None) + ["checkpoints"]
    if recipe.objective.needs_reference:
        besides.insert(0, "the reference's log-probs of all records")
    say(
        f"dry run: step 1 of {num_steps:,} works, in {first_step.seconds:.2g} s and with at most "
        f"{size_in_words(_peak_memory())} of {_kind_of_memory()}. {num_steps:,} such steps take "
        f"{whole}, besides {', '.join(besides)}. Nothing was kept."
    )


def _beginning(start: Start, *, overwrite: bool) -> str:
    if start.checkpoint is not None:
        return f"the run would go on from {start.checkpoint}"
    if overwrite and start.folder.exists():
        return f"the run would replace what {start.folder} holds"
    return f"the run would start in {start.folder}"


def _without_cache(recipe: Recipe) -> Recipe:
    """The recipe with a live reference: a cache is filled for all records at once."""
    section = recipe.reference or ReferenceSection()
    return recipe.model_copy(update={"reference": section.model_copy(update={"cache": "off"})})


class _FirstStepTakenError(Exception):
    """Leaves the Trainer, which would evaluate and save at its own end."""


class _FirstStep(TrainerCallback):
    """Times the first step, has it logged, and leaves with that."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds = time.monotonic() - self._began
        control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "loss" in (logs or {}):
            raise _FirstStepTakenError


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder of the first process, which removes it unless it holds what an error speaks of."""
    folder = Path(on_first_process(lambda: tempfile.mkdtemp(prefix="prefopt-dry-run-")))
    is_named = False
    try:
        yield folder
    except NonFiniteLossError:
        is_named = True
        raise
    finally:
        # Others may be gone before the first one has written its line of metrics.
        if PartialState().is_main_process and not is_named:
            shutil.rmtree(folder)


def _peak_memory() -> int:
    """Bytes that this process has held at most, on its GPU where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kind_of_memory() -> str:
    return "GPU memory" if torch.cuda.is_available() else "memory"
