"""Which checkpoint a run goes on from, and what must be as it was."""

from collections.abc import Callable, Mapping
from pathlib import Path

from prefopt.errors import UserError
from prefopt.train.checkpoint import best_of, checkpoints_in, load_state, step_of
from prefopt.train.manifest import MANIFEST, problem_of


def choose_checkpoint(
    run_folder: Path, resume: str, *, needs_best: bool, say: Callable[[str], None]
) -> Path | None:
    """The checkpoint that `--resume` means, after all of its files have been read and compared.

    Args:
        run_folder: the run's folder.
        resume: `auto` for the newest complete one, otherwise its path.
        needs_best: the best checkpoint so far is loaded at the end, so it must be complete too.
        say: prints a line, for each one that `auto` passes over.

    Returns:
        The checkpoint, or None if `auto` finds none at all.

    Raises:
        UserError: if the one that is asked for, or every one, is damaged.
    """
    if resume != "auto":
        return _given(run_folder, Path(resume), needs_best=needs_best)
    first_problem = None
    for checkpoint in checkpoints_in(run_folder):
        problem = _problem(checkpoint, needs_best=needs_best)
        if problem is None:
            return checkpoint
        say(f"resuming: {checkpoint} is not complete and not used: {problem}")
        first_problem = first_problem or f"{checkpoint}: {problem}"
    if first_problem is not None:
        raise UserError(
            f"--resume: no checkpoint in {run_folder} is complete; the newest is {first_problem}. "
            "Put its files back, or start anew by --overwrite."
        )
    return None


def check_engine(checkpoint: Path, engine: str, num_processes: int) -> None:
    """Refuse a checkpoint that the engine of this launch cannot read.

    Args:
        checkpoint: where the run goes on.
        engine: as `engine_of` names it.
        num_processes: of this launch.

    Raises:
        UserError: for files of another engine, or ZeRO's of another number of processes.
    """
    state = load_state(checkpoint)
    before, num_before = state["engine"], state["num_processes"]
    if before != engine:
        raise UserError(
            f"--resume: {checkpoint} was written under {before} on {num_before} processes, and "
            f"{engine} cannot read it. Launch with {before}, or start a run in a new folder."
        )
    if engine.startswith("zero") and num_before != num_processes:
        raise UserError(
            f"--resume: {checkpoint} was written under {engine} by {num_before} processes, and "
            f"DeepSpeed cannot divide its optimiser state among {num_processes}. "
            f"Launch {num_before} processes, or start a run in a new folder."
        )


def differences_of_split(checkpoint: Path, facts: Mapping[str, int]) -> list[str]:
    """What differs from the run that wrote a checkpoint and so may change the last bits."""
    stored = load_state(checkpoint)
    return [
        f"{name} was {stored[name]} and is {value}"
        for name, value in facts.items()
        if stored[name] != value
    ]


def _given(run_folder: Path, checkpoint: Path, *, needs_best: bool) -> Path:
    if not (checkpoint / MANIFEST).is_file():
        load_state(checkpoint)
    if checkpoint.resolve().parent != run_folder.resolve():
        raise UserError(
            f"--resume: {checkpoint} does not lie in training.output_dir {run_folder}. "
            "A run goes on in its own folder."
        )
    problem = _problem(checkpoint, needs_best=needs_best)
    if problem is None:
        return checkpoint
    before = [path for path in checkpoints_in(run_folder) if step_of(path) < step_of(checkpoint)]
    good = next((path for path in before if _problem(path, needs_best=needs_best) is None), None)
    way_out = f"go on from the one before by --resume {good}" if good else "start by --overwrite"
    raise UserError(
        f"--resume: {checkpoint} is not complete: {problem}. Put the file back, or {way_out}."
    )


def _problem(checkpoint: Path, *, needs_best: bool) -> str | None:
    problem = problem_of(checkpoint)
    if problem is not None or not needs_best:
        return problem
    best = best_of(checkpoint)
    if best is None or best.name == checkpoint.name:
        return None
    problem = problem_of(best)
    return problem and f"its best checkpoint {best}: {problem}"
