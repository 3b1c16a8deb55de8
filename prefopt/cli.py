"""The command line: typed arguments and help; the work is in `prefopt.commands`.

Every command imports its module inside its body, so that `prefopt --help` never waits for torch.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prefopt import __version__
from prefopt.errors import UserError

_USER_ERROR_EXIT_CODE = 2
_SECONDS_FOR_FIRST_PROCESS = 5.0
_INTERRUPTED_EXIT_CODE = 130  # what a shell reports for SIGINT


class _Prefopt(TyperGroup):
    """The group of all commands, with the error line and the optional value of `--resume`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parsed arguments, after a bare `--resume` got its value."""
        return super().parse_args(ctx, _spell_out_resume(args))

    def invoke(self, ctx: Any) -> Any:
        """What the command returns; a mistake of the user becomes one line and exit code 2."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            _say_error(str(error))
            raise typer.Exit(_USER_ERROR_EXIT_CODE) from error
        except KeyboardInterrupt as interrupt:
            if int(os.environ.get("RANK", "0")) == 0:
                typer.secho("Interrupted.", fg=typer.colors.YELLOW, file=sys.stderr)
            raise typer.Exit(_INTERRUPTED_EXIT_CODE) from interrupt


app = typer.Typer(
    cls=_Prefopt,
    help="Train language models on preferences: pairwise and listwise objectives on one core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", show_default=False, help="YAML file that says it all.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...",
        show_default=False,
        help="Recipe values to change, e.g. objective.beta=0.2; checked as in the file.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        show_default=False,
        help="The cache folder, data.cache_dir of recipes; without it $PREFOPT_CACHE or "
        "~/.cache/prefopt.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _print_version(is_asked: bool) -> bool:
    if is_asked:
        typer.echo(f"prefopt {__version__}")
        raise typer.Exit
    return is_asked


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of prefopt itself."""


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[auto|PATH]",
            show_default=False,
            help="Go on from the newest checkpoint of the run (auto, also without a value), "
            "or from the given one.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what the output folder holds and start.")
    ] = False,
) -> None:
    """Train a policy as the recipe says.

    On several processes: accelerate launch [--config_file ...] -m prefopt train RECIPE
    """
    from prefopt.commands import train as command

    command.run(recipe, overrides or [], resume, overwrite)


@app.command()
def precompute(recipe: Recipe, overrides: Overrides = None) -> None:
    """Compute the reference log-probs that training would use, and keep them.

    On several processes: accelerate launch [--config_file ...] -m prefopt precompute RECIPE
    """
    from prefopt.commands import precompute as command

    command.run(recipe, overrides or [])


@app.command()
def validate(
    recipe: Recipe,
    overrides: Overrides = None,
    show: Annotated[int, typer.Option(min=0, help="Records to show with tokens and masks.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Check recipe and data without loading weights, and show what the model would see."""
    from prefopt.commands import validate as command

    command.run(recipe, overrides or [], show, as_json)


@app.command()
def objectives(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", show_default=False, help="Those to show; else all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the objectives: formula, paper, data they need, parameters."""
    from prefopt.commands import objectives as command

    command.run(names or [], as_json)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for data, runs and curves.")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data and of training.")] = 0,
) -> None:
    """Train on the embedded task, end to end, without network or GPU."""
    from prefopt.commands import demo as command

    command.run(output, seed)


@app.command()
def merge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", show_default=False, help="Folder of an adapter run.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="Folder to write, new.")
    ],
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that lies with the base model."),
    ] = False,
) -> None:
    """Write a model whose weights contain the adapter of a run."""
    from prefopt.commands import merge as command

    command.run(run, output, trust_remote_code)


@app.command()
def schema(
    output: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, show_default=False, help="File to write; standard output without it."
        ),
    ] = None,
) -> None:
    """Print the JSON schema of recipes, with which editors complete and check keys."""
    from prefopt.commands import schema as command

    command.run(output)


cache = typer.Typer(
    help="List, check and remove what was computed once and kept: tokens, reference log-probs.",
    no_args_is_help=True,
)
app.add_typer(cache, name="cache")


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments`, those of the process by default, and exit."""
    _hush_imports()
    app(args=None if arguments is None else list(arguments), prog_name="prefopt")


def _hush_imports() -> None:
    """Drop warnings of libraries about themselves, which help nobody here."""
    warnings.filterwarnings("ignore", "`?is_gradient_checkpointing", FutureWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage()
    )


def _spell_out_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments with `auto` after each `--resume` that no path follows."""
    spelled: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        spelled.append(argument)
        if argument == "--resume" and not _is_resume_value(following):
            spelled.append("auto")
    return spelled


def _is_resume_value(argument: str) -> bool:
    is_recipe = argument.endswith((".yaml", ".yml"))
    is_override = "=" in argument
    return bool(argument) and not (argument.startswith("-") or is_recipe or is_override)


def _say_error(message: str) -> None:
    """Print the error line once, although every process of a run may come to the same error.

    A launcher ends all processes when the first one fails. So the others let the first one speak,
    and who is still there after a while has an error of its own.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank > 0:
        time.sleep(_SECONDS_FOR_FIRST_PROCESS)
    of_process = f" (process {rank})" if rank > 0 else ""
    typer.secho(f"error{of_process}: {message}", fg=typer.colors.RED, file=sys.stderr)
