"""The command `prefopt doctor`."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE]...",
            show_default=False,
            help="Recipes of which it says whether they fit the devices that are here.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Look at this machine: packages, devices, kernels, disk, cache; asks nothing outside it.

    Exits with 1 if something is wrong that a run needs.
    """
    from prefopt.commands import doctor as command

    command.run(recipes or [], as_json)
