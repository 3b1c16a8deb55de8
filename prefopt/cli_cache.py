"""The command group `prefopt cache`."""

from pathlib import Path
from typing import Annotated

import typer

CacheDir = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        show_default=False,
        help="The cache folder, data.cache_dir of recipes; without it $PREFOPT_CACHE or "
        "~/.cache/prefopt.",
    ),
]

cache = typer.Typer(
    help="List, check and remove what was computed once and kept: tokens, reference log-probs.",
    no_args_is_help=True,
)


@cache.command("list")
def cache_list(cache_dir: CacheDir = None) -> None:
    """List what the cache holds, with how much of it is there, size and age."""
    from prefopt.commands import cache as command

    command.show(cache_dir)


@cache.command("verify")
def cache_verify(cache_dir: CacheDir = None) -> None:
    """Read all reference log-probs and compare their checksums."""
    from prefopt.commands import cache as command

    command.verify(cache_dir)


@cache.command("prune")
def cache_prune(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY]...", show_default=False, help="Entries to remove, as listed."
        ),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(min=0, show_default=False, help="Remove what was written longer ago."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Remove what is incomplete or damaged; or what is named, older, or all. Asks nothing."""
    from prefopt.commands import cache as command

    command.prune(keys or [], days, everything, cache_dir)
