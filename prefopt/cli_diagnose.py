"""The command `prefopt diagnose`."""

from pathlib import Path
from typing import Annotated

import typer


def diagnose(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            show_default=False,
            help="Folder of a run or of one of its checkpoints, or any model or adapter.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.SUB=VALUE]...",
            show_default=False,
            help="Values of the run's recipe to change, e.g. objective.beta=0.2.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help="File or data set to look at; of a run, by default what it held out.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            show_default=False, help="Whose gradient; by default that of the run, else dpo."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Model to measure log-ratios against; by default what the run started from.",
        ),
    ] = None,
    groups: Annotated[int, typer.Option(min=1, help="How many groups to look at.")] = 64,
    token_maps: Annotated[
        int, typer.Option(min=0, help="Of how many of the worst groups to map tokens.")
    ] = 2,
    samples: Annotated[
        int, typer.Option(min=0, help="Answers to sample for the KL to the reference; 0 or 2 up.")
    ] = 0,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare predictions with small steps of gradient descent."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of groups, and samples.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            show_default=False,
            help="Folder for report.html and report.json; by default diagnosis, in the run.",
        ),
    ] = None,
) -> None:
    """Say why log-probs move: entanglement, displacement and ranking of a run or model.

    One process, on the GPU if there is one. Nothing of the run is changed.
    """
    from prefopt.commands import diagnose as command

    command.run(
        target,
        overrides or [],
        data=data or [],
        objective=objective,
        reference=reference,
        num_groups=groups,
        num_token_maps=token_maps,
        num_samples=samples,
        is_verified=verify,
        seed=seed,
        output=output,
    )
