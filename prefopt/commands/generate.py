"""`prefopt generate`: a system's answers to a file of prompts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from prefopt.commands.hush import hush
from prefopt.errors import UserError, check_section
from prefopt.evaluation.generate.base import Backend
from prefopt.evaluation.generate.endpoint_section import EndpointSection
from prefopt.evaluation.generate.load import load_backend
from prefopt.evaluation.generate.run import Outcome, generate, outcome_of
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.suites import read_suite
from prefopt.evaluation.types import Prompt
from prefopt.yaml_text import put_overrides

FOLDER = Path("generations")


def run(
    model: str,
    overrides: Sequence[str],
    *,
    prompts: str,
    output: Path | None,
    name: str | None,
    endpoint: str | None,
) -> None:
    """Answer, and say in a line what came out; see `prefopt generate --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    hush()
    system = name or default_name(model)
    path = output or FOLDER / f"{system}.jsonl"
    values: dict[str, Any] = {}
    put_overrides(values, overrides)
    weights = values.pop("model", None)
    where = values.pop("endpoint", None)
    section = check_section(GenerationSection, values, "")
    suite = read_suite(prompts)
    _check_categories(section, suite.prompts)
    for note in suite.notes:
        typer.echo(f"note: {note}", err=True)
    backend = _backend(model, section, weights, where, endpoint)
    answers = generate(backend, suite.prompts, section, path, system=system)
    typer.echo(_line(outcome_of(answers), path))


def _check_categories(section: GenerationSection, prompts: Sequence[Prompt]) -> None:
    """Refuse temperatures by category where no prompt has such a category."""
    wanted = section.temperature_by_category
    there = {prompt.category for prompt in prompts if prompt.category is not None}
    if wanted and not there & set(wanted):
        found = ", ".join(sorted(there)) or "none"
        raise UserError(
            f"temperature_by_category names {', '.join(wanted)}; categories of the prompts: "
            f"{found}. Remove the key or name theirs."
        )


def default_name(model: str) -> str:
    """What tables call a model that the user gave no name: the last part of its path or id."""
    return re.sub(
        r"[^\w.-]+",
        "-",
        Path(model).resolve().name
        if Path(model).exists()
        else model.rstrip("/").rpartition("/")[2],
    )


def _backend(
    model: str,
    section: GenerationSection,
    weights: Any,
    where: Any,
    endpoint: str | None,
) -> Backend:
    for key, value in (("model", weights), ("endpoint", where)):
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{key} has keys below it. Write {key}.KEY=value.")
    if endpoint is None:
        if where:
            raise UserError(f"endpoint.{min(where)} has no effect without --endpoint URL.")
        return load_backend(model, section, weights)
    if weights:
        raise UserError(f"model.{min(weights)} has no effect on an endpoint. Remove it.")
    there = check_section(EndpointSection, {**(where or {}), "url": endpoint}, "endpoint")
    # The package that it needs is an extra's.
    from prefopt.evaluation.generate.endpoint import EndpointBackend

    return EndpointBackend(model, there, section)


def _line(outcome: Outcome, path: Path) -> str:
    tokens = "" if outcome.mean_tokens is None else f", {outcome.mean_tokens:.1f} tokens on average"
    return (
        f"{outcome.num_answers:,} answers{tokens}, {outcome.share_cut:.1%} cut by the limit, "
        f"{outcome.share_empty:.1%} empty, in {path}"
    )
