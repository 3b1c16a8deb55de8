"""`prefopt train`: one recipe to one trained policy, on one process or many."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import PartialState

from prefopt.commands.assemble import assemble, find_out, say
from prefopt.commands.hush import hush
from prefopt.commands.outcome import print_outcome
from prefopt.commands.rehearse import rehearse
from prefopt.config import Recipe, load_recipe
from prefopt.train.checkpoint import METRICS_FILE
from prefopt.train.durable import (
    clear_staging,
    failed_writes_are_one_line,
    move_in,
    staging_folder,
)
from prefopt.train.lock import held
from prefopt.train.model_card import write_model_card
from prefopt.train.plots import plot_curves
from prefopt.train.processes import on_first_process
from prefopt.train.progress import ProgressReport
from prefopt.train.run_folder import MODEL_FILES, installed_versions, open_run
from prefopt.train.signals import Stopped
from prefopt.train.trainer import PreferenceTrainer

# Log entries that describe the run, not the model.
_NO_RESULTS = {"step", "epoch", "learning_rate", "tokens_per_second", "total_flos"}
_NO_RESULTS |= {"train_runtime", "train_steps_per_second", "grad_norm"}


def run(
    recipe_path: Path,
    overrides: Sequence[str],
    resume: str | None,
    *,
    overwrite: bool,
    is_rehearsal: bool,
) -> None:
    """Train what the recipe says, on all processes of the launch; see `train` and `rehearse`."""
    act = rehearse if is_rehearsal else train
    try:
        act(load_recipe(recipe_path, overrides), resume=resume, overwrite=overwrite)
    except Stopped as stopped:
        if stopped.has_saved:
            _part()
        raise
    leave_together()


def leave_together() -> None:
    """End a launch: no process leaves before the first one has saved everything.

    While gloo is taken down a process now and then aborts on its way out, with nothing left to do.
    A launcher ends all others for that, so those that hold nothing skip that way.
    """
    rank = PartialState().process_index
    _part()
    if rank > 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _part() -> None:
    """Close the connections between processes, on all of them."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    PartialState().destroy_process_group()


def train(
    recipe: Recipe, *, resume: str | None = None, overwrite: bool = False
) -> PreferenceTrainer:
    """Train a policy and leave model, metrics, curves and model card in the run's folder.

    Everything that can fail for a reason in recipe, data or folder fails before weights are read.

    Args:
        recipe: the checked recipe.
        resume: None, `auto` or a checkpoint to go on from.
        overwrite: replace a run that lies in the folder.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    hush()
    start = find_out(recipe, resume=resume, overwrite=overwrite)
    with ExitStack() as while_training:

        def open_folder() -> None:
            open_run(start.folder, recipe.resolved(), start.data.fingerprints, start.checkpoint)
            while_training.enter_context(held(start.folder, say))

        trainer = assemble(start, start.folder, lambda: on_first_process(open_folder))
        progress = ProgressReport()
        trainer.add_callback(progress)
        try:
            checkpoint = start.checkpoint
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            # A process of a launch that fails is ended without the usual way out.
            progress.close()
        with failed_writes_are_one_line(start.folder / "model"):
            _save(trainer, recipe)
    return trainer


def _save(trainer: PreferenceTrainer, recipe: Recipe) -> None:
    """The trained model, whole, with tokenizer, curves and card, moved in when it is complete."""
    folder = recipe.training.output_dir
    staging = staging_folder(folder) / "model"
    if trainer.is_world_process_zero():
        clear_staging(folder)
    trainer.accelerator.wait_for_everyone()
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(staging))
    if not trainer.is_world_process_zero():
        return
    write_model_card(
        staging,
        recipe=recipe.resolved(),
        objective_name=recipe.objective.name,
        base_model=recipe.model.path,
        datasets=[source.path for source in recipe.data.sources],
        has_reference=recipe.objective.needs_reference,
        is_adapter=recipe.adapter is not None,
        metrics=_last_metrics(trainer),
        versions=installed_versions(),
    )
    move_in(staging, folder, last=MODEL_FILES)
    plot_curves(folder / METRICS_FILE, staging / "curves.png")
    move_in(staging, folder)
    clear_staging(folder)
    print_outcome(trainer.state.log_history, folder, is_adapter=recipe.adapter is not None)


def _last_metrics(trainer: PreferenceTrainer) -> dict[str, float]:
    """The newest value of every metric of training and evaluation."""
    newest: dict[str, float] = {}
    for line in trainer.state.log_history:
        newest |= {name: value for name, value in line.items() if name not in _NO_RESULTS}
    # What explains a step says little of the model that it led to.
    return {name: value for name, value in newest.items() if not name.startswith("diagnostics/")}
