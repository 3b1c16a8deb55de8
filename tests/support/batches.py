"""Micro-batches that tests make without any text."""

import random

import torch

from prefopt.data.collate import collate
from prefopt.types import GroupBatch, TokenizedRecord


def batch_of_row(ids: torch.Tensor) -> GroupBatch:
    """One response that holds all tokens of a row [1, L] but the first."""
    record = TokenizedRecord(
        id="row", prompt_ids=ids[0, :1], response_ids=(ids[0, 1:],), scores=(1.0,)
    )
    return collate([record])


def random_records(
    num: int, *, vocabulary: int = 100, longest_prompt: int = 12, longest_response: int = 9
) -> list[TokenizedRecord]:
    """Records of 1 to 4 responses, in turn, whose lengths are drawn from 1 up."""
    generator = random.Random(0)

    def tokens(longest: int) -> torch.Tensor:
        length = generator.randint(1, longest)
        return torch.tensor([generator.randrange(vocabulary) for _ in range(length)])

    return [
        TokenizedRecord(
            id=f"r{i}",
            prompt_ids=tokens(longest_prompt),
            response_ids=tuple(tokens(longest_response) for _ in range(1 + i % 4)),
            scores=tuple(float(k) for k in range(1 + i % 4)),
        )
        for i in range(num)
    ]
