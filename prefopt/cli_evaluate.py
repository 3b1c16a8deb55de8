"""The command group `prefopt evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        show_default=False,
        help="A value of the run's recipe to change, e.g. model.dtype=bfloat16; may be repeated.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        file_okay=False, show_default=False, help="Folder; by default evaluation, in the run."
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        help="Model to measure log-ratios against; by default what the run started from.",
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        show_default=False,
        help="Folder of a run or of one of its checkpoints, or any model or adapter.",
    ),
]

evaluate = typer.Typer(
    help="Measure models without a judge: held-out pairs, KL to the start, TOFU.",
    no_args_is_help=True,
)


@evaluate.command("tofu")
def evaluate_tofu(
    target: Target,
    data: Annotated[
        Path,
        typer.Option(
            show_default=False, file_okay=False, help="Folder of TOFU's *_perturbed.json files."
        ),
    ],
    forget: Annotated[str, typer.Option(help="Which authors were to be forgotten.")] = "forget10",
    retain_model: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Model that never saw the forget set; forget quality compares with it.",
        ),
    ] = None,
    retain_results: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Its TOFU_EVAL.json instead, or that file's folder."),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help="How a question is put: chat, plain, auto for chat where there is a template, or "
            "a text with {question} that ends with {answer}."
        ),
    ] = "auto",
    max_items: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Of each set; by default all.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a generated answer.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 16,
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Tokens scored at once.")] = 16384,
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Measure unlearning on TOFU: forget quality, model utility and what they are made of.

    Goes on where it was stopped. Files are laid out as open-unlearning's.
    """
    from prefopt.commands import evaluate_tofu as command

    command.run(
        target,
        overrides or [],
        folder=data,
        forget=forget,
        retain_model=retain_model,
        retain_results=retain_results,
        template=template,
        max_items=max_items,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        output=output,
    )


@evaluate.command("pairs")
def evaluate_pairs(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_MODEL...",
            show_default=False,
            help="Folders of runs or checkpoints, models or adapters, side by side.",
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(show_default=False, help="File or data set of pairs; may be repeated."),
    ],
    reference: Reference = None,
    subset: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            show_default=False,
            help="Column that says which subset a pair belongs to; by default each file is one.",
        ),
    ] = None,
    as_messages: Annotated[
        bool,
        typer.Option("--as-messages", help="Put text as messages, so that chat templates apply."),
    ] = False,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for pairs.json.")] = Path(
        "evaluation"
    ),
) -> None:
    """Rank held-out pairs by each model: the same numbers, whatever it was trained by."""
    from prefopt.commands import evaluate_pairs as command

    command.run(
        targets,
        overrides or [],
        data=data,
        reference=reference,
        subset=subset,
        as_messages=as_messages,
        output=output,
    )


@evaluate.command("kl")
def evaluate_kl(
    target: Target,
    prompts: Annotated[
        str,
        typer.Option(
            show_default=False,
            help="File or data set of prompts, as prefopt generate reads them; of a dialogue, the "
            "first turn is answered.",
        ),
    ],
    reference: Reference = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 2,
    max_prompts: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="From the start of the file.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    plain: Annotated[
        bool, typer.Option("--plain", help="Put prompts as they are, without a chat template.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the answers.")] = 0,
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Measure the KL to the reference on answers that the model itself draws."""
    from prefopt.commands import evaluate as command

    command.run_kl(
        target,
        overrides or [],
        prompts=prompts,
        reference=reference,
        num_samples=samples,
        max_prompts=max_prompts,
        max_new_tokens=max_new_tokens,
        plain=plain,
        batch_size=batch_size,
        seed=seed,
        output=output,
    )
