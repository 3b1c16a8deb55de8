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
from prefopt.cli_cache import cache
from prefopt.cli_compare import compare
from prefopt.cli_convert import convert
from prefopt.cli_diagnose import diagnose
from prefopt.cli_doctor import doctor
from prefopt.cli_evaluate import evaluate
from prefopt.cli_exports import formats
from prefopt.cli_generate import generate
from prefopt.cli_group import Prefopt
from prefopt.cli_judge import judge
from prefopt.cli_report import report
from prefopt.train.failures import first_one_speaks
from prefopt.train.signals import SIGNALS

app = typer.Typer(
    cls=Prefopt,
    help="Train language models on preferences: pairwise and listwise objectives on one core.",
    no_args_is_help=True,
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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Take the first step alone, and keep nothing of it."),
    ] = False,
    accelerate: Configuration = None,
    processes: Processes = None,
) -> None:
    """Train a policy as the recipe says; the same command goes on with a run that was stopped.

    SIGTERM, SIGUSR1, Ctrl-C and training.max_minutes save a checkpoint after the running step and
    leave with exit code 75, Ctrl-C with 130.
    """
    flags = ["--overwrite"] * overwrite + ["--dry-run"] * dry_run
    flags += [] if resume is None else ["--resume", resume]
    _launch(accelerate, processes, ["train", str(recipe), *(overrides or []), *flags])
    with SIGNALS.heard():
        from prefopt.commands import train as command

        command.run(recipe, overrides or [], resume, overwrite=overwrite, is_rehearsal=dry_run)


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


app.command()(convert)
app.command()(doctor)
app.command()(diagnose)
app.command()(generate)
app.add_typer(judge, name="judge")
app.command()(report)
app.add_typer(formats, name="formats")
app.add_typer(evaluate, name="evaluate")
app.command()(compare)
app.add_typer(cache, name="cache")


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
