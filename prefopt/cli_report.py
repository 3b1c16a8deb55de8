"""The command `prefopt report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            show_default=False,
            help="Folder with a report.json, whose page and Markdown are written anew.",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(show_default=False, help="Instead: file or data set that was answered."),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(show_default=False, help="Of prefopt generate; one per system."),
    ] = None,
    judgments: Annotated[
        list[Path] | None,
        typer.Option(show_default=False, help="Of prefopt judge; one per judge, the first leads."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="System that others are compared with; by default the one beside the prompts, "
            "else the first.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(file_okay=False, show_default=False, help="Folder; by default report."),
    ] = None,
) -> None:
    """Write report.html, report.md and report.json from answers and judgments.

    The tables that AlpacaEval and MT-Bench print are those of prefopt formats table.
    """
    from prefopt.commands import report as command

    command.run(
        folder,
        prompts=prompts,
        answers=answers or [],
        judgments=judgments or [],
        baseline=baseline,
        output=output,
    )
