"""The command `prefopt generate`."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Folder of a model, adapter or run, a hub id, or the model's name at an endpoint.",
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            show_default=False,
            help="MT-Bench's question.jsonl, AlpacaEval's model_outputs.json, a file of your own "
            "prompts or preferences, or a data set on the hub.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.SUB=VALUE]...",
            show_default=False,
            help="How to answer: max_new_tokens, temperature, temperature_by_category=mt_bench, "
            "top_p, top_k, num_samples, seed, batch_size, system, stop; model.dtype and other keys "
            "of a recipe's model; endpoint.num_in_flight, endpoint.api_key_env and others.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, show_default=False, help="File; by default generations/NAME.jsonl."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(show_default=False, help="Of the system; by default the model's."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="Ask a server that speaks OpenAI's chat completions: vLLM, SGLang and others.",
        ),
    ] = None,
) -> None:
    """Answer prompts: one process, on the GPU if there is one; goes on where it was stopped."""
    from prefopt.commands import generate as command

    command.run(
        model,
        overrides or [],
        prompts=prompts,
        output=output,
        name=name,
        endpoint=endpoint,
    )
