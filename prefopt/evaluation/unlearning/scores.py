"""What a model says of given answers: log-probs in float32, and which tokens it would choose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from prefopt.data.collate import collate
from prefopt.models.head import Statistics
from prefopt.models.layout import score_tokens
from prefopt.types import TokenizedRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerScore:
    """One answer, teacher-forced."""

    avg_loss: float
    """Mean negative log-prob of its tokens in nats, the end included."""
    is_predicted: tuple[bool, ...]
    """Of each token: whether the model finds it the most likely one there."""


def score_answers(
    model: PreTrainedModel | PeftModel, records: Sequence[TokenizedRecord], tokens_per_batch: int
) -> Iterator[tuple[int, list[AnswerScore]]]:
    """Scores of all answers of each record, with the record's position, batch by batch.

    Args:
        model: with a log-prob head, on its device.
        records: questions with their answers.
        tokens_per_batch: how many tokens, padding included, one pass may hold; a record that alone
            has more is a pass of its own.
    """
    was_training = model.training
    model.eval()
    for batch in _batches(records, tokens_per_batch):
        yield from zip(batch, _scored(model, [records[i] for i in batch]), strict=True)
    model.train(was_training)


def _batches(records: Sequence[TokenizedRecord], budget: int) -> Iterator[list[int]]:
    """Positions of records of like length, the longest first: what does not fit fails at once."""
    longest = [each.num_prompt_tokens + max(each.num_response_tokens) for each in records]
    batch: list[int] = []
    num_rows = 0
    for i in sorted(range(len(records)), key=lambda i: -longest[i]):
        num_answers = len(records[i].response_ids)
        if batch and (num_rows + num_answers) * longest[batch[0]] > budget:
            yield batch
            batch, num_rows = [], 0
        batch.append(i)
        num_rows += num_answers
    if batch:
        yield batch


def _scored(
    model: PreTrainedModel | PeftModel, records: Sequence[TokenizedRecord]
) -> list[list[AnswerScore]]:
    batch = collate(records)
    everything = torch.arange(len(batch.targets))
    batch = replace(batch, statistic_tokens=everything, plain_tokens=everything[:0])
    batch = batch.to(model.device)
    assert batch.statistic_tokens is not None
    assert batch.plain_tokens is not None
    statistics = Statistics(
        tokens=batch.statistic_tokens, others=batch.plain_tokens, num_top=1, reference=None
    )
    with torch.no_grad():
        found = score_tokens(model, batch, statistics=statistics)
    hits = (found["top_ids"][:, 0] == batch.targets).tolist()
    losses = (-found["logps"].double()).tolist()
    answers = []
    start = 0
    for length in batch.layout.response_lengths:
        stop = start + length
        answers.append(
            AnswerScore(
                avg_loss=sum(losses[start:stop]) / length, is_predicted=tuple(hits[start:stop])
            )
        )
        start = stop
    grouped = iter(answers)
    return [[next(grouped) for _ in record.response_ids] for record in records]
