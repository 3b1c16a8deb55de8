"""The command `prefopt convert`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer


def convert(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", show_default=False, help="YAML file of `trl dpo --config` and others."
        ),
    ],
    trainer: Annotated[
        str | None,
        typer.Option(
            metavar="[dpo|kto|cpo|orpo]",
            show_default=False,
            help="Which of TRL's trainers reads it; by default the one whose keys it has, and dpo "
            "where several have them.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="On how many processes TRL would run, which decides how many prompts a step "
            "has; by default the file's num_processes, else 1.",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            show_default=False,
            help="Leave a key of the file out, knowing that TRL would train otherwise; repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, show_default=False, help="File to write; standard output without it."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that is there.")
    ] = False,
) -> None:
    """Write the recipe that trains as a TRL config does; what has no counterpart is named."""
    with redirect_stdout(sys.stderr):
        # Trackers greet while they are imported, and the recipe goes to standard output.
        from prefopt.commands import convert as command

    command.run(
        config,
        trainer=trainer,
        processes=processes,
        skip=skip or [],
        output=output,
        overwrite=overwrite,
    )
