"""`prefopt evaluate tofu`: what an unlearned model still knows, in open-unlearning's files."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from prefopt.commands.diagnose_subject import Subject
from prefopt.commands.evaluate import (
    folder_for,
    load_on_device,
    loaded_subject,
    tell,
    versions,
)
from prefopt.commands.hush import hush
from prefopt.data.section import default_cache_folder
from prefopt.errors import UserError
from prefopt.evaluation.unlearning import results
from prefopt.evaluation.unlearning.data import SPLITS, Tofu, read_tofu
from prefopt.evaluation.unlearning.prompts import template_of
from prefopt.evaluation.unlearning.retain import read_retain_ratios
from prefopt.evaluation.unlearning.suite import Settings, TofuModel
from prefopt.models.tokenizer import load_tokenizer
from prefopt.models.weights import weights_digest

ITEMS_FILE = "tofu_items.jsonl"
RETAIN_FOLDER = "retain"
_ROWS = (
    ("forget quality (p of KS)", "forget_quality"),
    ("forget: probability", "forget_Q_A_Prob"),
    ("forget: ROUGE-L recall", "forget_Q_A_ROUGE"),
    ("forget: truth ratio", "forget_truth_ratio"),
    ("forget: extraction strength", "extraction_strength"),
    ("forget: exact memorisation", "exact_memorization"),
    ("model utility", "model_utility"),
    ("retain: probability", "retain_Q_A_Prob"),
    ("retain: ROUGE-L recall", "retain_Q_A_ROUGE"),
    ("retain: truth ratio", "retain_Truth_Ratio"),
    ("real authors: probability", "ra_Q_A_Prob_normalised"),
    ("real authors: ROUGE-L recall", "ra_Q_A_ROUGE"),
    ("real authors: truth ratio", "ra_Truth_Ratio"),
    ("world facts: probability", "wf_Q_A_Prob_normalised"),
    ("world facts: ROUGE-L recall", "wf_Q_A_ROUGE"),
    ("world facts: truth ratio", "wf_Truth_Ratio"),
)


def run(
    target: str,
    overrides: Sequence[str],
    *,
    folder: Path,
    forget: str,
    retain_model: str | None,
    retain_results: Path | None,
    template: str,
    max_items: int | None,
    max_new_tokens: int,
    batch_size: int,
    tokens_per_batch: int,
    output: Path | None,
) -> None:
    """Measure, print a table and write both files; see `prefopt evaluate tofu --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    hush()
    if retain_model is not None and retain_results is not None:
        raise UserError("--retain-model and --retain-results say the same. Give one of them.")
    data = read_tofu(folder, forget, max_items)
    where = folder_for(target, output)
    ratios = None
    if retain_results is not None:
        ratios = read_retain_ratios(retain_results, data)
    settings = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "tokens_per_batch": tokens_per_batch,
    }
    if retain_model is not None:
        there = where / RETAIN_FOLDER
        found, about = _measured(
            retain_model, overrides, data, template, settings, there, is_whole=False
        )
        of_retain = results.of_scores("forget", data.items["forget"], found)
        results.write_results(of_retain, there, about)
        ratios = results.truth_ratios(of_retain)
    found, about = _measured(target, overrides, data, template, settings, where, is_whole=True)
    metrics = results.all_metrics(data, found, ratios)
    about["retain"] = retain_model or (None if retain_results is None else str(retain_results))
    about["num_cut"] = sum(bool(each.get("is_cut")) for each in found.values())
    full, summary = results.write_results(metrics, where, about)
    _print(target, data, results.summarised(metrics), ratios is not None)
    typer.echo(f"per item in {full}, summary in {summary}")


def _measured(
    target: str,
    overrides: Sequence[str],
    data: Tofu,
    template: str,
    settings: Mapping[str, int],
    folder: Path,
    *,
    is_whole: bool,
) -> tuple[Any, dict[str, Any]]:
    """What a model says of all sets, or of the forget set's given answers; and how it was asked."""
    subject = loaded_subject(target, overrides, None)
    tokenizer = load_tokenizer(subject.model)
    asked = Settings(template=template_of(template, tokenizer), **settings)
    identity = _identity(subject)
    model = TofuModel(load_on_device(subject, target), tokenizer, asked, identity)
    typer.echo(f"asking {target}")
    found = model.measure(
        data,
        folder / ITEMS_FILE,
        splits=SPLITS if is_whole else ("forget",),
        generates=is_whole,
        on_done=tell,
    )
    about = {
        "model": target,
        "weights": identity,
        "forget": data.forget,
        "data": dict(data.fingerprints),
        "num_items": {split: len(items) for split, items in data.items.items()},
        "template": asked.template.identity,
        "max_new_tokens": asked.max_new_tokens,
        "versions": versions(),
    }
    return found, about


def _identity(subject: Subject) -> dict[str, Any]:
    """The content of weights and adapter, and the type in which they compute."""
    memo = default_cache_folder() / "weights"
    model, adapter = subject.model, subject.adapter
    of_adapter = None
    if adapter is not None and adapter.path is not None:
        of_adapter = weights_digest(adapter.path, "adapter.path", memo=memo)
    return {
        "weights": weights_digest(model.path, "model.path", revision=model.revision, memo=memo),
        "adapter": of_adapter,
        "dtype": model.dtype,
        "quantization": model.quantization,
    }


def _print(target: str, data: Tofu, summary: Mapping[str, float], has_retain: bool) -> None:
    title = f"TOFU {data.forget} of {target}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("value", justify="right")
    for words, name in _ROWS:
        if name == "forget_quality":
            table.add_row(words, _quality(summary.get(name)), end_section=True)
            continue
        table.add_row(words, f"{summary[name]:.4f}", end_section=name == "exact_memorization")
    Console().print(table)
    sizes = ", ".join(f"{len(items):,} of {name}" for name, items in data.items.items())
    typer.echo(f"items: {sizes}")
    if not has_retain:
        typer.echo(
            "note: forget quality needs a model that never saw the forget set: --retain-model or "
            "--retain-results."
        )


def _quality(p: float | None) -> str:
    if p is None:
        return "unknown"
    return f"{p:.3g} (log10 {math.log10(max(p, sys.float_info.min)):.2f})"
