"""Tokenised records to one flat micro-batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.types import GroupBatch, Layout, TokenizedRecord


def collate(records: Sequence[TokenizedRecord]) -> GroupBatch:
    """The micro-batch of some records, G >= 1, with K the largest number of their responses."""
    num_slots = max(len(record.response_ids) for record in records)
    prompts = [record.prompt_ids for record in records]
    responses = [ids for record in records for ids in record.response_ids]
    slots = [
        g * num_slots + k for g, record in enumerate(records) for k in range(len(record.scores))
    ]
    positions = [torch.arange(len(prompt)) for prompt in prompts] + [
        torch.arange(len(ids)) + record.num_prompt_tokens
        for record in records
        for ids in record.response_ids
    ]
    lengths = torch.tensor([len(ids) for ids in responses])
    where = torch.zeros(len(records), num_slots, dtype=torch.bool)
    where.view(-1)[slots] = True
    scores = torch.zeros(len(records), num_slots, dtype=torch.float64)
    scores[where] = scores.new_tensor([score for record in records for score in record.scores])
    num_tokens = torch.zeros(len(records), num_slots, dtype=torch.int64)
    num_tokens[where] = lengths
    return GroupBatch(
        input_ids=torch.cat(prompts + responses),
        position_ids=torch.cat(positions),
        layout=Layout(
            prompt_lengths=tuple(len(prompt) for prompt in prompts),
            response_lengths=tuple(lengths.tolist()),
            response_slots=tuple(slots),
            num_slots=num_slots,
        ),
        targets=torch.cat(responses),
        response_of_token=torch.repeat_interleave(torch.tensor(slots), lengths),
        where=where,
        scores=scores,
        num_tokens=num_tokens,
        ids=tuple(record.id for record in records),
        token_weights=_token_weights(records),
    )


def _token_weights(records: Sequence[TokenizedRecord]) -> Float[Tensor, " N"] | None:
    weights = [each for record in records for each in record.token_weights or ()]
    return torch.cat(weights) if weights else None
