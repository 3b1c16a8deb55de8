"""`prefopt validate`: what the data holds and what the model would see, without loading weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from prefopt.commands.preview import render_preview
from prefopt.config import load_recipe
from prefopt.data.prepare import OnProgress, prepare_data
from prefopt.data.summary import DataSummary, Quantiles, SourceSummary, StoreSummary
from prefopt.models.load import check_model_sections
from prefopt.models.tokenizer import load_tokenizer
from prefopt.train.arguments import training_arguments
from prefopt.train.needs import check_needs

__all__ = ["render_preview", "render_summary", "run"]


def run(recipe_path: Path, overrides: Sequence[str], show: int, as_json: bool) -> None:
    """Check recipe and data, print the report and `show` records; or the report as JSON.

    Raises:
        UserError: at the first mistake in the recipe or the data; after the report, if the data
            says nothing to the objective.
    """
    recipe = load_recipe(recipe_path, overrides)
    check_model_sections(recipe.model, recipe.adapter, recipe.reference)
    training_arguments(recipe.training, has_evaluation=recipe.data.evaluation is not None)
    tokenizer = load_tokenizer(recipe.model)
    with _progress_bar() as on_progress:
        data = prepare_data(recipe.data, tokenizer, on_progress=on_progress)
    if as_json:
        typer.echo(data.summary.model_dump_json(indent=2))
    else:
        console = Console()
        render_summary(data.summary, console)
        render_preview(data.train, tokenizer, console, show)
    fit = check_needs(recipe.objective, data)
    if not as_json:
        for line in fit.warnings:
            typer.echo(f"! {line}")
        typer.echo(
            f"{recipe.objective.name} learns from {fit.num_counted:,} of {len(data.train):,}."
        )


@contextmanager
def _progress_bar() -> Iterator[OnProgress]:
    """A callback that shows progress on standard error, where a person looks at it."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    with bar:
        yield show


def render_summary(summary: DataSummary, console: Console) -> None:
    """Print the report: sources, both sides, what is dropped or cut, what to look at."""
    console.print(_sources_table((*summary.sources, *summary.evaluation_sources)))
    console.print(_sides_table(summary.train, summary.evaluation))
    for line in _lines(summary):
        console.print(Text(line))
    for note in summary.notes:
        console.print(Text(f"! {note}", style="yellow"))


def _sources_table(sources: Sequence[SourceSummary]) -> Table:
    table = Table(title="Sources", title_justify="left", title_style="bold")
    table.add_column("source", overflow="fold")
    table.add_column("format", overflow="fold")
    for name in ("rows", "invalid", "records", "too long", "weight"):
        table.add_column(name, justify="right")
    for source in sources:
        table.add_row(
            Text(Path(source.path).name),
            source.format,
            f"{source.rows:,}",
            f"{sum(source.invalid.values()):,}",
            f"{source.records:,}",
            f"{source.too_long:,}",
            f"{source.weight:g}",
        )
    return table


def _sides_table(train: StoreSummary, evaluation: StoreSummary | None) -> Table:
    table = Table(title="Records to train on", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("training", justify="right")
    columns = [dict(_numbers(train))]
    if evaluation is not None:
        table.add_column("evaluation", justify="right")
        columns.append(dict(_numbers(evaluation)))
    names = {name: None for column in columns for name in column}
    for name in names:
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def _numbers(side: StoreSummary) -> Iterator[tuple[str, str]]:
    """Lines of the table; those of rare things only where there are any."""
    yield "records", f"{side.records:,}"
    yield "different prompts", f"{side.prompts:,}"
    for num_responses, num_records in side.responses_per_record.items():
        yield f"  with K = {num_responses} responses", f"{num_records:,}"
    yield "two responses differ in text and score", f"{side.comparable:,}"
    yield "prompt tokens, median / p99 / most", _spread(side.prompt_lengths)
    yield "best response, median / p99 / most", _spread(side.best_lengths)
    if side.other_lengths is not None:
        yield "other responses, median / p99 / most", _spread(side.other_lengths)
    for name, count in (
        ("some scores tied", side.tied),
        ("all scores tied", side.all_tied),
        ("some responses identical", side.identical),
        ("all responses identical", side.all_identical),
        ("duplicates of another record", side.duplicates),
        ("best response cut to max_length", side.cut_best),
        ("another response cut to max_length", side.cut_other),
        ("tokens merged at the prompt's end", side.merged),
        ("generation prompt shortened", side.template_cut),
    ):
        if count:
            yield name, f"{count:,}"
    saved = 1 - side.tokens_shared / side.tokens_repeated
    yield "tokens, prompt repeated per response", f"{side.tokens_repeated:,}"
    yield "tokens, prompt shared", f"{side.tokens_shared:,} (-{saved:.0%})"


def _spread(lengths: Quantiles) -> str:
    return f"{lengths.median:,.0f} / {lengths.p99:,.0f} / {lengths.largest:,}"


def _lines(summary: DataSummary) -> Iterator[str]:
    """What was left out, and why."""
    for source in (*summary.sources, *summary.evaluation_sources):
        name = Path(source.path).name
        if source.too_long:
            yield (
                f"{name}: {source.too_long:,} records exceed max_length = {summary.max_length:,} "
                f"and are dropped: prompt {source.too_long_prompt:,}, best response "
                f"{source.too_long_best:,}, another response {source.too_long_other:,}."
            )
        for problem, count in source.invalid.items():
            yield f"{name}: {count:,} rows dropped: {problem}."
        yield from (f"  such as {example}" for example in source.invalid_examples)
