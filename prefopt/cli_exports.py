"""The command group `prefopt formats`: files and tables of AlpacaEval and MT-Bench."""

from pathlib import Path
from typing import Annotated

import typer

formats = typer.Typer(
    help="Write and read files of AlpacaEval and MT-Bench, and print their tables.",
    no_args_is_help=True,
)

Format = Annotated[
    str,
    typer.Argument(
        metavar="FORMAT",
        show_default=False,
        help="alpaca-outputs (model_outputs.json), alpaca-annotations (annotations.json), "
        "mt-bench-answers (model_answer), mt-bench-single or mt-bench-pair (model_judgment).",
    ),
]
Output = Annotated[
    Path, typer.Argument(metavar="OUT", dir_okay=False, show_default=False, help="File to write.")
]


@formats.command("export")
def export(
    format: Format,
    output: Output,
    prompts: Annotated[
        str, typer.Option(show_default=False, help="File or data set that was answered.")
    ],
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            show_default=False,
            help="Of prefopt generate; for annotations any number, for their outputs.",
        ),
    ] = None,
    judgments: Annotated[
        Path | None, typer.Option(show_default=False, help="Of prefopt judge.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(show_default=False, help="System that annotations compare with."),
    ] = None,
) -> None:
    """Write answers or judgments as the official program does."""
    from prefopt.commands import exports as command

    command.export(
        format,
        output,
        prompts=prompts,
        answers=answers or [],
        judgments=judgments,
        baseline=baseline,
    )


@formats.command("import")
def load(
    format: Format,
    source: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="The official file.")
    ],
    output: Output,
    prompts: Annotated[
        str | None,
        typer.Option(show_default=False, help="MT-Bench's questions, for its files."),
    ] = None,
) -> None:
    """Write an official file's answers or judgments in the form that prefopt reads."""
    from prefopt.commands import exports as command

    command.load(format, source, output, prompts=prompts)


@formats.command("table")
def table(
    protocol: Annotated[
        str, typer.Argument(metavar="[alpaca|mt-bench]", show_default=False, help="Which tables.")
    ],
    prompts: Annotated[
        str, typer.Option(show_default=False, help="File or data set that was answered.")
    ],
    judgments: Annotated[Path, typer.Option(show_default=False, help="Of one judge.")],
    baseline: Annotated[
        str | None, typer.Option(show_default=False, help="System that others are compared with.")
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(show_default=False, help="Of prefopt generate, for lengths; alpaca only."),
    ] = None,
    official_lc: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="AlpacaEval's df_gamed.csv, for its own length-controlled rate; all 805 prompts "
            "in its order.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Print a protocol's table as the official program does, with intervals and what is missing."""
    from prefopt.commands import protocol_tables as command

    command.run(
        protocol,
        prompts=prompts,
        judgments=judgments,
        baseline=baseline,
        answers=answers or [],
        official_lc=official_lc,
        as_json=as_json,
    )
