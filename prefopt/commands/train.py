"""`prefopt train`: one recipe to one trained policy, on one process or many."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from accelerate import PartialState
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from prefopt.commands.before import (
    check_apart,
    check_same_data,
    check_same_recipe,
    check_vocabulary,
    report_data,
)
from prefopt.commands.hush import hush
from prefopt.commands.parts import held_out_steps, identity_of, load_models, training_steps
from prefopt.config import Recipe, load_recipe
from prefopt.data.prepare import prepare_data
from prefopt.diagnostics.gram import GramMeter
from prefopt.models.attention import head_size, why_not_varlen
from prefopt.models.head import layout_of
from prefopt.models.load import check_model_sections
from prefopt.models.section import ReferenceSection
from prefopt.models.tokenizer import load_tokenizer
from prefopt.train.arguments import training_arguments
from prefopt.train.cached_reference import ReferenceStart
from prefopt.train.callbacks import LogLastStep, MetricsFile
from prefopt.train.checkpoint import (
    METRICS_FILE,
    engine_of,
    facts_of_split,
    load_state,
    step_of,
)
from prefopt.train.diagnostics import StepDiagnostics
from prefopt.train.durable import (
    clear_staging,
    failed_writes_are_one_line,
    move_in,
    staging_folder,
)
from prefopt.train.engine_limits import check_engine_limits
from prefopt.train.guard import StepGuard
from prefopt.train.metrics import LogWindow
from prefopt.train.model_card import write_model_card
from prefopt.train.needs import check_needs
from prefopt.train.normalise import GradientNorms
from prefopt.train.plots import plot_curves
from prefopt.train.processes import on_first_process
from prefopt.train.progress import ProgressReport
from prefopt.train.resume import check_engine, differences_of_split
from prefopt.train.run_folder import MODEL_FILES, find_start, installed_versions, open_run
from prefopt.train.signals import Stopped
from prefopt.train.stopping import StopAgreement
from prefopt.train.trainer import PreferenceTrainer

# Log entries that describe the run, not the model.
_NO_RESULTS = {"step", "epoch", "learning_rate", "tokens_per_second", "total_flos"}
_NO_RESULTS |= {"train_runtime", "train_steps_per_second", "grad_norm"}


def run(recipe_path: Path, overrides: Sequence[str], resume: str | None, overwrite: bool) -> None:
    """Train what the recipe says, on all processes of the launch; see `train`."""
    try:
        train(load_recipe(recipe_path, overrides), resume=resume, overwrite=overwrite)
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
    began = time.monotonic()
    hush()
    check_apart(recipe)
    check_model_sections(recipe.model, recipe.adapter, recipe.reference)
    arguments = training_arguments(
        recipe.training, has_evaluation=recipe.data.evaluation is not None
    )
    check_engine_limits(
        arguments,
        is_quantized=recipe.model.quantization is not None,
        normalises_gradients=recipe.training.normalise_gradients,
    )
    check_same_recipe(recipe)
    tokenizer = load_tokenizer(recipe.model)
    data = prepare_data(recipe.data, tokenizer)
    check_same_data(data)
    fit = check_needs(recipe.objective, data)
    folder, resolved, fingerprints = (
        recipe.training.output_dir,
        recipe.resolved(),
        data.fingerprints,
    )
    checkpoint = on_first_process(
        lambda: find_start(
            folder, resolved, fingerprints, resume=resume, overwrite=overwrite, say=_say
        ),
    )
    if checkpoint is not None:
        check_engine(checkpoint, engine_of(arguments), arguments.world_size)
    if arguments.process_index == 0:
        report_data(data, recipe.objective.name, fit)
    # The Trainer sets the seed again, but a new adapter starts at random before it exists.
    set_seed(arguments.seed)
    policy, reference = load_models(recipe)
    check_vocabulary(recipe.objective, data, policy, reference)
    layout, why_padded = layout_of(policy)
    uses_kernels = layout != "padded" and arguments.device.type == "cuda"
    slow = why_not_varlen(arguments.device, head_size(policy.config)) if uses_kernels else None
    if slow and arguments.process_index == 0:
        typer.echo(f"attention: one response at a time, since the flash kernels fail: {slow}")
    if why_padded and arguments.process_index == 0:
        typer.echo(f"layout: a padded row per response, since {why_padded}")
    has_reference = reference is not None
    identity = identity_of(recipe, reference) if reference is not None else None
    on_first_process(lambda: open_run(folder, resolved, fingerprints, checkpoint))
    use_cache = policy.config.use_cache
    progress = ProgressReport()
    trainer = PreferenceTrainer(
        model=policy,
        args=arguments,
        objective=recipe.objective,
        reference=reference,
        train_dataset=training_steps(recipe, arguments, data, layout),
        eval_dataset=held_out_steps(recipe, arguments, data, layout),
        tokenizer=tokenizer,
        callbacks=[*_callbacks(recipe), progress],
        stop=StopAgreement(_end_of_time(recipe, began)),
        guard=StepGuard(folder, max_skipped=recipe.training.max_skipped_steps, say=_say),
    )
    trainer.remove_callback(PrinterCallback)
    # The Trainer switches the cache off for training, where scoring never uses it; a saved model
    # that says so would generate slowly.
    policy.config.use_cache = use_cache
    # The trainer alone holds it then, and lets go of it where the cache takes its place.
    del reference
    if has_reference:
        section = recipe.reference or ReferenceSection()
        began_cached = None if checkpoint is None else load_state(checkpoint)["cached_reference"]
        ReferenceStart(trainer, section, identity, began_cached=began_cached, say=_say)
    if recipe.training.normalise_gradients:
        budget = recipe.training.tokens_per_micro_batch
        trainer.norms = GradientNorms(GramMeter(policy), tokens_per_micro_batch=budget)
    if recipe.diagnostics is not None:
        trainer.add_callback(StepDiagnostics(trainer, recipe.diagnostics, _say))
    if checkpoint is not None:
        _go_on(trainer, checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        # A process of a launch that fails is ended without the usual way out.
        progress.close()
    with failed_writes_are_one_line(recipe.training.output_dir / "model"):
        _save(trainer, recipe)
    return trainer


def _say(line: str) -> None:
    """Print on the first process."""
    if PartialState().is_main_process:
        typer.echo(line)


def _end_of_time(recipe: Recipe, began: float) -> float | None:
    """When `training.max_minutes` is over, by the clock of the first process."""
    minutes = recipe.training.max_minutes
    if minutes is None or not PartialState().is_main_process:
        return None
    return began + 60 * minutes


def _go_on(trainer: PreferenceTrainer, checkpoint: Path) -> None:
    """Restore what the Trainer itself does not, and say what has changed around the run."""
    state = load_state(checkpoint)
    trainer.window = LogWindow(**state["window"])
    if state["num_processes"] != trainer.accelerator.num_processes:
        # A process whose random state nobody stored must not draw anew what the first steps drew.
        set_seed(trainer.args.seed + step_of(checkpoint))
    if trainer.is_world_process_zero():
        typer.echo(f"resuming from {checkpoint}")
        for difference in differences_of_split(checkpoint, facts_of_split(trainer)):
            typer.echo(f"resuming: {difference}; the last bits of the result may differ")


def _callbacks(recipe: Recipe) -> list[TrainerCallback]:
    training = recipe.training
    callbacks: list[TrainerCallback] = [LogLastStep(), MetricsFile()]
    if training.early_stopping_patience is not None:
        callbacks.append(
            EarlyStoppingCallback(
                training.early_stopping_patience, training.early_stopping_threshold
            )
        )
    return callbacks


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
    typer.echo(f"model in {folder}, curves in {folder / 'curves.png'}")


def _last_metrics(trainer: PreferenceTrainer) -> dict[str, float]:
    """The newest value of every metric of training and evaluation."""
    newest: dict[str, float] = {}
    for line in trainer.state.log_history:
        newest |= {name: value for name, value in line.items() if name not in _NO_RESULTS}
    # What explains a step says little of the model that it led to.
    return {name: value for name, value in newest.items() if not name.startswith("diagnostics/")}
