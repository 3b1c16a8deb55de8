"""`prefopt evaluate`: what its commands share, and `prefopt evaluate kl`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import typer
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from prefopt.commands.diagnose_subject import Subject, subject_of
from prefopt.commands.hush import hush
from prefopt.errors import UserError
from prefopt.evaluation.continuations import check_room, prompt_ids
from prefopt.evaluation.files import write_json
from prefopt.evaluation.kl import kl_numbers, sample_and_score
from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.suites import read_suite
from prefopt.models.load import check_model_sections
from prefopt.models.section import ReferenceSection
from prefopt.models.tokenizer import load_tokenizer

Model = PreTrainedModel | PeftModel

FOLDER = "evaluation"
KL_FILE = "kl.json"
_PACKAGES = ("prefopt", "torch", "transformers")


def run_kl(
    target: str,
    overrides: Sequence[str],
    *,
    prompts: str,
    reference: str | None,
    num_samples: int,
    max_prompts: int | None,
    max_new_tokens: int,
    plain: bool,
    batch_size: int,
    seed: int,
    output: Path | None,
) -> None:
    """Measure, print a table and write kl.json; see `prefopt evaluate kl --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    hush()
    suite = read_suite(prompts)
    notes = list(suite.notes)
    if any(len(prompt.turns) > 1 for prompt in suite.prompts):
        notes.append("Of prompts of several turns, the first one is answered.")
    subject = loaded_subject(target, overrides, reference)
    if subject.reference is None:
        raise UserError(
            f"{target} has no recipe that says where it started. Add --reference MODEL."
        )
    tokenizer = load_tokenizer(subject.model)
    asked = prompt_ids(suite.prompts[:max_prompts], tokenizer, plain=plain)
    policy = load_on_device(subject, target)
    check_room(policy, max(len(ids) for _, ids in asked) + max_new_tokens, "--max-new-tokens")
    copy = subject.load_reference()
    assert copy is not None
    start: Any = copy.model.to(policy.device)
    typer.echo(f"drawing {num_samples:,} answers to each of {len(asked):,} prompts")
    rows = sample_and_score(
        policy,
        start,
        tokenizer,
        asked,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        on_done=lambda done, total: tell("answers", done, total),
    )
    numbers = kl_numbers(rows)
    if numbers["share_cut"]["value"] > 0:
        notes.append(
            f"{numbers['share_cut']['value']:.0%} of the answers were cut at {max_new_tokens:,} "
            "tokens; the KL is that of answers up to there."
        )
    print_numbers(f"KL({target} || {reference_name(subject)}), nats", {"": numbers}, list(numbers))
    for note in notes:
        typer.echo(f"note: {note}")
    file = folder_for(target, output) / KL_FILE
    write_json(
        file,
        {
            "schema": "prefopt/kl/1",
            "model": target,
            "reference": reference_name(subject),
            "prompts": prompts,
            "max_new_tokens": max_new_tokens,
            "chat_template": bool(tokenizer.chat_template) and not plain,
            "seed": seed,
            "versions": versions(),
            "notes": notes,
            "numbers": numbers,
            "samples": [asdict(row) for row in rows],
        },
    )
    typer.echo(f"numbers in {file}")


def loaded_subject(target: str, overrides: Sequence[str], reference: str | None) -> Subject:
    """What a run, model or adapter stands for, checked before any weight is read.

    Raises:
        UserError: if there is no model.
    """
    # Of a model without a recipe, data would have to be named; here none of it is read.
    subject = subject_of(target, overrides, data=["unused"], objective=None, reference=reference)
    check_model_sections(subject.model, subject.adapter, subject.reference)
    return subject


def load_on_device(subject: Subject, target: str) -> Any:
    """The policy, ready to be measured, on the GPU if there is one.

    Raises:
        UserError: if it cannot be loaded, or its training has diverged.
    """
    policy: Any = subject.load_policy()
    if subject.model.quantization is None:
        policy.to(torch.accelerator.current_accelerator() or torch.device("cpu"))
    if not all(bool(weight.isfinite().all()) for weight in policy.parameters()):
        raise UserError(
            f"{target}: weights hold values that are no numbers, so nothing can be measured: its "
            "training diverged. Give an earlier checkpoint."
        )
    return policy.eval()


def tell(what: str, done: int, total: int) -> None:
    """Progress, on one line of a terminal; nothing where nobody watches."""
    if sys.stderr.isatty():
        typer.echo(f"\r{what}: {done:,} of {total:,}   ", nl=done == total, err=True)


def folder_for(target: str, output: Path | None) -> Path:
    """Where results go that the user gave no folder for: into the run."""
    return output or (Path(target) if Path(target).is_dir() else Path()) / FOLDER


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    return {name: metadata.version(name) for name in _PACKAGES}


def print_numbers(
    title: str, columns: Mapping[str, Mapping[str, Estimate]], names: Sequence[str]
) -> None:
    """A table of numbers with their intervals, a column per model."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(column or "value [95 %]", justify="right", overflow="fold")
    for name in names:
        cells = [cell(each.get(name)) for each in columns.values()]
        if any(cells):
            table.add_row(name, *cells)
    Console().print(table)


def cell(number: Estimate | None) -> str:
    """`0.712 [0.655, 0.764]`; empty where a model has no such number."""
    if number is None:
        return ""
    text = f"{number['value']:.3f}"
    if number["low"] is None or number["high"] is None:
        return text
    return f"{text} [{number['low']:.3f}, {number['high']:.3f}]"


def reference_name(subject: Subject) -> str:
    """Path of the model that log-ratios are against."""
    section = subject.reference or ReferenceSection()
    start = section.path or subject.recipe.model.path
    adapter = None if section.path else subject.recipe.adapter
    return start if adapter is None or adapter.path is None else f"{start} with {adapter.path}"
