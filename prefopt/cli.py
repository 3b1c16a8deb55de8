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
from prefopt.cli_cache import cache
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
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs, over all machines.")] = 1,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="[single|ddp|zero1|zero2|zero3|zero3_offload|fsdp2]",
            show_default=False,
            help="How they share the run; without it all modes, side by side.",
        ),
    ] = None,
    gpu_memory: Annotated[float, typer.Option(help="Memory of a GPU in GiB.")] = 80.0,
    peak_tflops: Annotated[
        float,
        typer.Option(
            help="What a GPU computes by its data sheet, in dense bfloat16: 989.4 is an H100 SXM."
        ),
    ] = 989.4,
    utilization: Annotated[
        float,
        typer.Option(
            help="Share of that which training is assumed to reach. torchtitan reports 0.33 to "
            "0.39 for Llama 3.1 8B on 8 H100 under FSDP."
        ),
    ] = 0.35,
    as_json: AsJson = False,
) -> None:
    """Say what a run would take on so many GPUs: memory, time, communication; loads no weights."""
    from prefopt.commands import plan as command

    command.run(
        recipe,
        overrides or [],
        mode,
        num_gpus=gpus,
        gpu_memory=gpu_memory,
        peak_tflops=peak_tflops,
        utilization=utilization,
        as_json=as_json,
    )


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


app.add_typer(cache, name="cache")


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
