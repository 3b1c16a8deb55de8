"""The command `prefopt compare`."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[COMPARISON | RECIPE...]",
            show_default=False,
            help="One file that says it all (docs/evaluation.md), or the recipes to compare.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Compare nine objectives on the embedded task.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            show_default=False,
            help="Folder for everything; of a comparison file, instead of its output_dir.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(show_default=False, help="With recipes: file of the prompts to answer."),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(show_default=False, help="With recipes: file that says who judges."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", show_default=False, help="With recipes: training seeds."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what would be trained.")
    ] = False,
) -> None:
    """Train several objectives alike, judge their answers, and write one report.

    The same command goes on where it stopped.
    """
    from prefopt.commands import compare as command

    command.run(
        files or [],
        is_demo=demo,
        output=output,
        prompts=prompts,
        judge=judge,
        seeds=seeds,
        is_dry=dry_run,
    )
