"""A run from its recipe: what must hold before weights are read, and the trainer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer
from accelerate import PartialState
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from prefopt.commands.before import (
    check_apart,
    check_same_data,
    check_same_recipe,
    check_vocabulary,
    report_data,
)
from prefopt.commands.parts import held_out_steps, identity_of, load_models, training_steps
from prefopt.config import Recipe
from prefopt.data.prepare import PreparedData, prepare_data
from prefopt.diagnostics.gram import GramMeter
from prefopt.models.attention import head_size, why_not_varlen
from prefopt.models.head import layout_of
from prefopt.models.load import check_model_sections
from prefopt.models.section import ReferenceSection
from prefopt.models.tokenizer import load_tokenizer
from prefopt.train.arguments import training_arguments
from prefopt.train.cached_reference import ReferenceStart
from prefopt.train.callbacks import LogLastStep, MetricsFile
from prefopt.train.checkpoint import engine_of, facts_of_split, load_state, step_of
from prefopt.train.diagnostics import StepDiagnostics
from prefopt.train.engine_limits import check_engine_limits
from prefopt.train.guard import StepGuard
from prefopt.train.metrics import LogWindow
from prefopt.train.needs import Fit, check_needs
from prefopt.train.normalise import GradientNorms
from prefopt.train.processes import on_first_process
from prefopt.train.resume import check_engine, differences_of_split
from prefopt.train.run_folder import find_start
from prefopt.train.stopping import StopAgreement
from prefopt.train.trainer import PreferenceTrainer


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A run that may begin: everything that needs no weights is there and fits."""

    recipe: Recipe
    arguments: TrainingArguments
    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    fit: Fit
    checkpoint: Path | None
    """Where it goes on."""
    began: float
    """When the command began, by the clock of `time.monotonic`."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.recipe.training.output_dir


def find_out(recipe: Recipe, *, resume: str | None, overwrite: bool) -> Start:
    """Check everything that can fail for a reason in recipe, data or folder; changes no run.

    Args:
        recipe: the checked recipe.
        resume: None, `auto` or a checkpoint to go on from.
        overwrite: a run that lies in the folder will be replaced.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    began = time.monotonic()
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
    checkpoint = on_first_process(
        lambda: find_start(
            recipe.training.output_dir,
            recipe.resolved(),
            data.fingerprints,
            resume=resume,
            overwrite=overwrite,
            say=say,
        ),
    )
    if checkpoint is not None:
        check_engine(checkpoint, engine_of(arguments), arguments.world_size)
    return Start(
        recipe=recipe,
        arguments=arguments,
        tokenizer=tokenizer,
        data=data,
        fit=fit,
        checkpoint=checkpoint,
        began=began,
    )


def assemble(start: Start, folder: Path, ready: Callable[[], None]) -> PreferenceTrainer:
    """Load the models of a run and make its trainer; says what is trained on, and how.

    Args:
        start: what `find_out` found.
        folder: where steps that are not finite are written down.
        ready: called on every process when models are loaded and fit, before anything is written.

    Raises:
        UserError: if models cannot be loaded, or do not fit the data.
    """
    recipe, arguments, data = start.recipe, start.arguments, start.data
    if arguments.process_index == 0:
        report_data(data, recipe.objective.name, start.fit)
    # The Trainer sets the seed again, but a new adapter starts at random before it exists.
    set_seed(arguments.seed)
    policy, reference = load_models(recipe)
    check_vocabulary(recipe.objective, data, policy, reference)
    layout, why_padded = layout_of(policy)
    uses_kernels = layout != "padded" and arguments.device.type == "cuda"
    slow = why_not_varlen(arguments.device, head_size(policy.config)) if uses_kernels else None
    if slow:
        say(f"attention: one response at a time, since the flash kernels fail: {slow}")
    if why_padded:
        say(f"layout: a padded row per response, since {why_padded}")
    has_reference = reference is not None
    identity = identity_of(recipe, reference) if reference is not None else None
    ready()
    use_cache = policy.config.use_cache
    trainer = PreferenceTrainer(
        model=policy,
        args=arguments,
        objective=recipe.objective,
        reference=reference,
        train_dataset=training_steps(recipe, arguments, data, layout),
        eval_dataset=held_out_steps(recipe, arguments, data, layout),
        tokenizer=start.tokenizer,
        callbacks=_callbacks(recipe),
        stop=StopAgreement(_end_of_time(start)),
        guard=StepGuard(folder, max_skipped=recipe.training.max_skipped_steps, say=say),
    )
    trainer.remove_callback(PrinterCallback)
    # The Trainer switches the cache off for training, where scoring never uses it; a saved model
    # that says so would generate slowly.
    policy.config.use_cache = use_cache
    # The trainer alone holds it then, and lets go of it where the cache takes its place.
    del reference
    if has_reference:
        section = recipe.reference or ReferenceSection()
        goes_on = start.checkpoint
        began_cached = None if goes_on is None else load_state(goes_on)["cached_reference"]
        ReferenceStart(trainer, section, identity, began_cached=began_cached, say=say)
    if recipe.training.normalise_gradients:
        budget = recipe.training.tokens_per_micro_batch
        trainer.norms = GradientNorms(GramMeter(policy), tokens_per_micro_batch=budget)
    if recipe.diagnostics is not None:
        trainer.add_callback(StepDiagnostics(trainer, recipe.diagnostics, say))
    if start.checkpoint is not None:
        _go_on(trainer, start.checkpoint)
    return trainer


def say(line: str) -> None:
    """Print on the first process."""
    if PartialState().is_main_process:
        typer.echo(line)


def _end_of_time(start: Start) -> float | None:
    """When `training.max_minutes` is over, by the clock of the first process."""
    minutes = start.recipe.training.max_minutes
    if minutes is None or not PartialState().is_main_process:
        return None
    return start.began + 60 * minutes


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
