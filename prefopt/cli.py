"""The command line: typed arguments and help; the work is in `prefopt.commands`.

Every command imports its module inside its body, so that `prefopt --help` never waits for torch.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from prefopt import __version__
from prefopt.cli_group import Prefopt
from prefopt.train.failures import first_one_speaks
from prefopt.train.signals import SIGNALS

app = typer.Typer(
    cls=Prefopt,
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
Configuration = Annotated[
    str | None,
    typer.Option(
        "--accelerate",
        metavar="NAME|FILE",
        show_default=False,
        help="Start processes as this launch configuration says: single, ddp, fsdp2, zero1, zero2, "
        "zero3, zero3_offload, zero3_multinode, or a YAML file of accelerate.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default=False,
        help="How many processes, over all machines; by default one per GPU, and what the "
        "configuration says where there is none.",
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
    accelerate: Configuration = None,
    processes: Processes = None,
) -> None:
    """Train a policy as the recipe says.

    SIGTERM, SIGUSR1, Ctrl-C and training.max_minutes save a checkpoint after the running step and
    leave with exit code 75, Ctrl-C with 130.
    """
    flags = ["--overwrite"] * overwrite + ([] if resume is None else ["--resume", resume])
    _launch(accelerate, processes, ["train", str(recipe), *(overrides or []), *flags])
    with SIGNALS.heard():
        from prefopt.commands import train as command

        command.run(recipe, overrides or [], resume, overwrite)


@app.command()
def precompute(
    recipe: Recipe,
    overrides: Overrides = None,
    accelerate: Configuration = None,
    processes: Processes = None,
) -> None:
    """Compute the reference log-probs that training would use, and keep them."""
    _launch(accelerate, processes, ["precompute", str(recipe), *(overrides or [])])
    with SIGNALS.heard():
        from prefopt.commands import precompute as command

        command.run(recipe, overrides or [])


def _launch(configuration: str | None, processes: int | None, arguments: list[str]) -> None:
    """Run prefopt with these arguments on several processes, if that is asked for, and exit."""
    if configuration is None and processes is None:
        return
    from prefopt.commands import launch as command

    raise typer.Exit(command.run(configuration, processes, arguments))


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
    with first_one_speaks():
        app(args=None if arguments is None else list(arguments), prog_name="prefopt")


def _hush_imports() -> None:
    """Drop warnings of libraries about themselves, which help nobody here."""
    warnings.filterwarnings("ignore", "`?is_gradient_checkpointing", FutureWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage()
    )
