"""The flat micro-batch as padded rows, one per response: the plain layout and the oracle."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prefopt.types import GroupBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedRows:
    """Every response behind a copy of its prompt, padded on the right to L tokens."""

    input_ids: Int[Tensor, "R L"]
    attention_mask: Int[Tensor, "R L"]
    predictors: Int[Tensor, " N"]
    """Position in the flattened rows that predicts each scored token: the one before it."""


def to_padded_rows(batch: GroupBatch) -> PaddedRows:
    """Rows whose scored tokens are those of the flat batch, in the same order."""
    layout = batch.layout
    prompt_starts = _starts(layout.prompt_lengths, first=0)
    response_starts = _starts(layout.response_lengths, first=layout.num_prompt_tokens)
    groups = [slot // layout.num_slots for slot in layout.response_slots]
    lengths = [
        layout.prompt_lengths[g] + n for g, n in zip(groups, layout.response_lengths, strict=True)
    ]
    width = max(lengths)
    # -1 marks padding; whatever token stands there is masked.
    source = torch.full((len(groups), width), -1)
    predictors = []
    for row, group in enumerate(groups):
        prompt, response = layout.prompt_lengths[group], layout.response_lengths[row]
        source[row, :prompt] = torch.arange(prompt) + prompt_starts[group]
        source[row, prompt : prompt + response] = torch.arange(response) + response_starts[row]
        predictors.append(torch.arange(response) + row * width + prompt - 1)
    source = source.to(batch.input_ids.device)
    return PaddedRows(
        input_ids=batch.input_ids[source.clamp(min=0)],
        attention_mask=(source >= 0).long(),
        predictors=torch.cat(predictors).to(source.device),
    )


def token_logps(model: nn.Module, batch: GroupBatch) -> Float[Tensor, " N"]:
    """Log-prob of every scored token under a model with a log-prob head, wrapped or not."""
    logps: Tensor = score_tokens(model, batch)
    return logps


def score_tokens(model: nn.Module, batch: GroupBatch, **asked: Any) -> Any:
    """What a model with a log-prob head, wrapped or not, says of the scored tokens.

    Args:
        model: the model.
        batch: the micro-batch.
        asked: further arguments of the head; see `prefopt.models.head`.
    """
    rows = to_padded_rows(batch)
    return model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        predictors=rows.predictors,
        targets=batch.targets,
        **asked,
    )


def _starts(lengths: tuple[int, ...], first: int) -> list[int]:
    starts = [first]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts
