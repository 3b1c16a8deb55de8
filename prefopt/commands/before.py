"""What a run checks and says before any weight is loaded."""

from pathlib import Path

import typer
from peft import PeftModel
from transformers import PreTrainedModel

from prefopt.config import Recipe
from prefopt.data.prepare import PreparedData
from prefopt.data.summary import SourceSummary
from prefopt.errors import UserError
from prefopt.models.reference import FrozenCopy, Reference
from prefopt.objectives import Objective
from prefopt.train.agreement import check_agreement
from prefopt.train.needs import Fit
from prefopt.train.run_folder import flat, installed_versions


def check_apart(recipe: Recipe) -> None:
    """Refuse a run folder that holds what the run reads: replacing the run would remove it.

    Raises:
        UserError: naming the key of what lies in the folder.
    """
    folder = recipe.training.output_dir.resolve()
    for key, path in _inputs(recipe).items():
        if path is not None and folder in (Path(path).resolve(), *Path(path).resolve().parents):
            raise UserError(
                f"training.output_dir: {recipe.training.output_dir} holds {key}, {path}. "
                "Give the run a folder of its own."
            )


def _inputs(recipe: Recipe) -> dict[str, str | Path | None]:
    data, evaluation = recipe.data, recipe.data.evaluation
    held_out = () if evaluation is None or evaluation.sources is None else evaluation.sources
    sources = {f"data.sources.{i}.path": source.path for i, source in enumerate(data.sources)}
    sources |= {
        f"data.evaluation.sources.{i}.path": source.path for i, source in enumerate(held_out)
    }
    return {
        "model.path": recipe.model.path,
        "model.tokenizer": recipe.model.tokenizer,
        "adapter.path": recipe.adapter.path if recipe.adapter else None,
        "reference.path": recipe.reference.path if recipe.reference else None,
        "data.cache_dir": data.cache_dir,
        **sources,
    }


def check_same_recipe(recipe: Recipe) -> None:
    """Refuse processes of one launch that read different recipes or run different packages.

    Raises:
        UserError: naming the keys or packages, and processes and hosts.
    """
    check_agreement(
        dict(flat(recipe.resolved())), "Start all processes with the same recipe and overrides."
    )
    versions = {f"package {name}": version for name, version in installed_versions().items()}
    check_agreement(versions, "Install the same versions for all processes.")


def check_same_data(data: PreparedData) -> None:
    """Refuse processes of one launch whose sources gave different records or tokens.

    Raises:
        UserError: naming the source, and processes and hosts.
    """
    facts = {
        f"data.sources.{i} as tokens": shard.info.fingerprint
        for i, shard in enumerate(data.train.shards)
    }
    if data.evaluation is not None:
        facts |= {
            f"data.evaluation, source {i} as tokens": shard.info.fingerprint
            for i, shard in enumerate(data.evaluation.shards)
        }
    check_agreement(facts, "Give all processes the same files, tokenizer and chat template.")


def check_vocabulary(
    objective: Objective,
    data: PreparedData,
    policy: PreTrainedModel | PeftModel,
    reference: Reference | None,
) -> None:
    """Refuse models whose vocabulary does not hold the data, or what the objective asks of it.

    Raises:
        UserError: naming the model and both sizes.
    """
    num_tokens = policy.config.get_text_config().vocab_size
    check_tokens(data, num_tokens)
    if objective.num_top_logits > num_tokens:
        raise UserError(
            f"objective.name: {objective.name} asks for the {objective.num_top_logits} most likely "
            f"tokens, but the model's vocabulary has {num_tokens}. Lower its k."
        )
    if not objective.needs_reference_distribution or not isinstance(reference, FrozenCopy):
        return
    if reference.vocabulary != num_tokens:
        raise UserError(
            f"reference.path: its vocabulary has {reference.vocabulary} tokens and the policy's "
            f"{num_tokens}, but objective.name: {objective.name} compares whole distributions. "
            "Give a reference with the same vocabulary."
        )


def check_tokens(data: PreparedData, num_tokens: int) -> None:
    """Refuse data with tokens that a model's vocabulary of that size does not have.

    Raises:
        UserError: naming the token and the size.
    """
    stores = [data.train] if data.evaluation is None else [data.train, data.evaluation]
    largest = max(store.largest_token for store in stores)
    if largest >= num_tokens:
        raise UserError(
            f"model.path: the tokenizer gives token {largest}, but the model has embeddings for "
            f"{num_tokens} only. Use the tokenizer that the model was trained with."
        )


def report_data(data: PreparedData, objective_name: str, fit: Fit) -> None:
    """Say in a few lines what is trained on, and what is not and why."""
    summary = data.summary
    for source in (*summary.sources, *summary.evaluation_sources):
        typer.echo(_line(source))
    for note in summary.notes:
        typer.echo(f"! {note}")
    for line in fit.warnings:
        typer.echo(f"! {line}")
    held_out = "" if data.evaluation is None else f", {len(data.evaluation):,} held out"
    typer.echo(
        f"{objective_name} learns from {fit.num_counted:,} of {len(data.train):,} records{held_out}"
    )


def _line(source: SourceSummary) -> str:
    parts = [f"{source.rows:,} rows", f"{source.records:,} records"]
    if source.invalid:
        parts.append(f"{sum(source.invalid.values()):,} invalid rows dropped")
    if source.too_long:
        parts.append(f"{source.too_long:,} too long and dropped")
    return f"{source.path} ({source.format}): {', '.join(parts)}"
