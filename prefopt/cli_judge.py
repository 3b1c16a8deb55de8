"""The command group `prefopt judge`."""

from pathlib import Path
from typing import Annotated

import typer

judge = typer.Typer(
    help="Ask a judge which answers are better, or whether it is fit to say so.",
    no_args_is_help=True,
)

Section = Annotated[
    Path,
    typer.Argument(
        metavar="JUDGE",
        show_default=False,
        help="YAML file with the judge's section: backend and its keys.",
    ),
]


@judge.command("run")
def judge_run(
    section: Section,
    prompts: Annotated[
        str,
        typer.Option(
            show_default=False, help="What was answered: a file of prompts, MT-Bench or AlpacaEval."
        ),
    ],
    answers: Annotated[
        list[Path],
        typer.Option(
            dir_okay=False,
            show_default=False,
            help="A system's answers, from prefopt generate; once per system.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(show_default=False, help="The system that others are compared with."),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="[baseline|all]",
            show_default=False,
            help="Which systems to compare; by default with the baseline if one is named, else "
            "all with all.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="[pair|score|both]",
            show_default=False,
            help="What to ask for; by default pair if the judge knows pairs.",
        ),
    ] = None,
    turns: Annotated[
        list[int] | None,
        typer.Option(min=1, show_default=False, help="Turns to judge, from 1; by default all."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, show_default=False, help="File; by default judgments/NAME.jsonl."
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on where under 99% have a judgment.")
    ] = False,
) -> None:
    """Judge answers, each pair in both orders; goes on where it was stopped."""
    from prefopt.commands import judge as command

    command.run(
        section,
        prompts=prompts,
        answers=answers,
        baseline=baseline,
        pairs=pairs,
        kind=kind,
        turns=turns,
        output=output,
        allow_missing=allow_missing,
    )


@judge.command("doctor")
def judge_doctor(section: Section) -> None:
    """Put plain questions to a judge: order, consistency, labels. Exit code 1 if it is unfit."""
    from prefopt.commands import judge as command

    raise typer.Exit(command.doctor(section))
