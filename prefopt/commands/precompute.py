"""`prefopt precompute`: the reference log-probs that training would use, without training."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from accelerate import Accelerator, PartialState
from torch import nn
from torch.utils.data import TensorDataset
from transformers import Trainer

from prefopt.commands.before import (
    check_same_data,
    check_same_recipe,
    check_tokens,
    report_data,
)
from prefopt.commands.cache import size_in_words
from prefopt.commands.hush import hush
from prefopt.commands.train import leave_together
from prefopt.config import Recipe, load_recipe
from prefopt.data.prepare import prepare_data
from prefopt.errors import UserError
from prefopt.models.load import check_model_sections
from prefopt.models.reference import load_reference_alone
from prefopt.models.section import ReferenceSection
from prefopt.models.tokenizer import load_tokenizer
from prefopt.train.arguments import keep_log_probs_wide, training_arguments
from prefopt.train.cached_reference import compute_all, count_records, scorer_of
from prefopt.train.needs import check_needs
from prefopt.train.precompute import check_sample
from prefopt.train.progress import clock
from prefopt.train.reference_identity import cached_sources, identify


def run(recipe_path: Path, overrides: Sequence[str]) -> None:
    """Compute what is missing on all processes of the launch, and say where it is."""
    precompute(load_recipe(recipe_path, overrides))
    leave_together()


def precompute(recipe: Recipe) -> None:
    """Fill the reference cache for the recipe's data, training and held-out.

    Raises:
        UserError: if training would not use it, or for a mistake that the user can mend.
    """
    began = time.monotonic()
    section = recipe.reference or ReferenceSection()
    _check(recipe, section)
    check_model_sections(recipe.model, recipe.adapter, recipe.reference)
    accelerator = _accelerator(recipe)
    check_same_recipe(recipe)
    tokenizer = load_tokenizer(recipe.model)
    data = prepare_data(recipe.data, tokenizer)
    check_same_data(data)
    fit = check_needs(recipe.objective, data)
    if accelerator.is_main_process:
        report_data(data, recipe.objective.name, fit)
    live = load_reference_alone(section, recipe.model, recipe.adapter)
    check_tokens(data, live.vocabulary)
    identity = identify(section, recipe.model, recipe.adapter, live, recipe.data.cache_folder())
    if identity.is_wide:
        raise UserError(
            "model.dtype: training with a float64 reference uses no cache, which would round its "
            "log-probs. There is nothing to compute before."
        )
    live.prepare(accelerator)
    stores = [data.train] if data.evaluation is None else [data.train, data.evaluation]
    shards = {shard.folder: shard for store in stores for shard in store.shards}
    sources = cached_sources(identity, accelerator, list(shards.values()))
    budget = recipe.training.tokens_per_micro_batch
    scorer = scorer_of(identity, accelerator, live, live.model, budget)
    total, missing = count_records(sources, _say)
    if missing:
        compute_all(sources, scorer, missing, total, _say)
    check_sample(sources, scorer)
    num_tokens = sum(source.about.num_tokens for source in sources)
    _say(
        f"reference: {total:,} records with {num_tokens:,} response tokens in the cache, "
        f"{size_in_words(4 * num_tokens)}, after {clock(time.monotonic() - began)}"
    )
    for source in sources:
        _say(f"reference: {source.about.source}: {source.folder.folder}")


def _check(recipe: Recipe, section: ReferenceSection) -> None:
    """Refuse recipes that would not use what is computed."""
    name = recipe.objective.name
    if not recipe.objective.needs_reference:
        raise UserError(
            f"objective.name: {name} needs no reference, so there is nothing to compute before. "
            "Train at once: prefopt train."
        )
    if recipe.objective.needs_reference_distribution:
        raise UserError(
            f"objective.name: {name} compares whole distributions, which are not kept, so there is "
            "nothing to compute before. Train at once: prefopt train."
        )
    if section.cache == "off":
        raise UserError("reference.cache: off, so training would not use it. Set it to auto.")


def _accelerator(recipe: Recipe) -> Accelerator:
    """What the trainer would run on, with its precision and sharding."""
    hush()
    # The trainer makes its output folder at once.
    with tempfile.TemporaryDirectory() as folder:
        nowhere = recipe.training.model_copy(update={"output_dir": Path(folder)})
        arguments = training_arguments(nowhere, has_evaluation=recipe.data.evaluation is not None)
        nothing = TensorDataset(torch.zeros(1))
        trainer = Trainer(model=nn.Linear(1, 1), args=arguments, eval_dataset=nothing)
    accelerator: Accelerator = trainer.accelerator
    keep_log_probs_wide(accelerator)
    return accelerator


def _say(line: str) -> None:
    if PartialState().is_main_process:
        typer.echo(line)
