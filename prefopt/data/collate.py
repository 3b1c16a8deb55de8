"""Tokenised records to one flat micro-batch."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
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
        token_weights=_per_token(record.token_weights for record in records),
        reference_logps=_per_token(record.reference_logps for record in records),
    )


def records_of(batch: GroupBatch) -> list[TokenizedRecord]:
    """The groups of a micro-batch by themselves, with nothing known of single tokens."""
    layout = batch.layout
    prompts = batch.input_ids[: layout.num_prompt_tokens].split(list(layout.prompt_lengths))
    responses = batch.targets.split(list(layout.response_lengths))
    groups: list[list[int]] = [[] for _ in prompts]
    for number, slot in enumerate(layout.response_slots):
        groups[slot // layout.num_slots].append(number)
    scores = batch.scores[batch.where].tolist()
    return [
        TokenizedRecord(
            id=id_,
            prompt_ids=prompt,
            response_ids=tuple(responses[number] for number in numbers),
            scores=tuple(scores[number] for number in numbers),
        )
        for id_, prompt, numbers in zip(batch.ids, prompts, groups, strict=True)
    ]


def some_responses(batch: GroupBatch, first: int, stop: int) -> GroupBatch:
    """The micro-batch of one group with its responses from `first` up to `stop` alone."""
    assert batch.layout.num_groups == 1
    assert batch.where.all()
    lengths = batch.layout.response_lengths
    num_prompt = batch.layout.num_prompt_tokens
    tokens = slice(sum(lengths[:first]), sum(lengths[:stop]))

    def of_row(row: Int[Tensor, " T"]) -> Int[Tensor, " _"]:
        return torch.cat([row[:num_prompt], row[num_prompt:][tokens]])

    def of_tokens(column: Tensor | None) -> Tensor | None:
        return None if column is None else column[tokens]

    def of_positions(positions: Int[Tensor, " M"] | None) -> Int[Tensor, " _"] | None:
        if positions is None:
            return None
        is_inside = (positions >= tokens.start) & (positions < tokens.stop)
        return positions[is_inside] - tokens.start

    return replace(
        batch,
        input_ids=of_row(batch.input_ids),
        position_ids=of_row(batch.position_ids),
        layout=Layout(
            prompt_lengths=batch.layout.prompt_lengths,
            response_lengths=lengths[first:stop],
            response_slots=tuple(range(stop - first)),
            num_slots=stop - first,
        ),
        targets=batch.targets[tokens],
        response_of_token=batch.response_of_token[tokens] - first,
        where=batch.where[:, first:stop],
        scores=batch.scores[:, first:stop],
        num_tokens=batch.num_tokens[:, first:stop],
        token_weights=of_tokens(batch.token_weights),
        reference_logps=of_tokens(batch.reference_logps),
        noise=of_tokens(batch.noise),
        differs=of_tokens(batch.differs),
        statistic_tokens=of_positions(batch.statistic_tokens),
        plain_tokens=of_positions(batch.plain_tokens),
    )


def repeat_responses(batch: GroupBatch) -> GroupBatch:
    """One group with its responses twice, in order; nothing else is known of their tokens."""
    assert batch.layout.num_groups == 1
    assert batch.where.all()
    num_prompt, num = batch.layout.num_prompt_tokens, batch.layout.num_slots

    def twice(row: Int[Tensor, " T"]) -> Int[Tensor, " _"]:
        return torch.cat([row, row[num_prompt:]])

    def side_by_side(values: Tensor) -> Tensor:
        return torch.cat([values, values], dim=-1)

    return GroupBatch(
        input_ids=twice(batch.input_ids),
        position_ids=twice(batch.position_ids),
        layout=Layout(
            prompt_lengths=batch.layout.prompt_lengths,
            response_lengths=batch.layout.response_lengths * 2,
            response_slots=tuple(range(2 * num)),
            num_slots=2 * num,
        ),
        targets=side_by_side(batch.targets),
        response_of_token=torch.cat([batch.response_of_token, batch.response_of_token + num]),
        where=side_by_side(batch.where),
        scores=side_by_side(batch.scores),
        num_tokens=side_by_side(batch.num_tokens),
        ids=batch.ids,
    )


def _per_token(
    columns: Iterable[tuple[Float[Tensor, " _"], ...] | None],
) -> Float[Tensor, " N"] | None:
    values = [each for column in columns for each in column or ()]
    return torch.cat(values) if values else None
