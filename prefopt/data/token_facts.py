"""What an objective may want to know of single tokens and only the data can say."""

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.types import TokenizedRecord


def differing_tokens(record: TokenizedRecord) -> list[Bool[Tensor, " _"]]:
    """Of each response, the tokens in which the best-scored and the worst-scored one differ.

    Best responses are compared with the first worst one, and worst ones with the first best one.
    Nothing differs in a response between them, or where all scores tie.
    """
    best, worst = max(record.scores), min(record.scores)
    opposite = {
        best: record.response_ids[record.scores.index(worst)],
        worst: record.response_ids[record.scores.index(best)],
    }
    return [
        _not_in(ids, opposite.get(score, ids) if best > worst else ids)
        for ids, score in zip(record.response_ids, record.scores, strict=True)
    ]


def _not_in(ids: Tensor, other: Tensor) -> Bool[Tensor, " _"]:
    """True at tokens that the longest common blocks with the other sequence leave out."""
    differs = torch.ones(len(ids), dtype=torch.bool)
    matcher = SequenceMatcher(None, ids.tolist(), other.tolist(), autojunk=False)
    for start, _, size in matcher.get_matching_blocks():
        differs[start : start + size] = False
    return differs


def token_noise(record: TokenizedRecord, key: Sequence[int]) -> list[Float[Tensor, " _"]]:
    """Of each response, uniform numbers in [0, 1) that depend on key, record and position alone."""
    record_key = xxhash.xxh3_64_intdigest(record.id.encode())
    return [
        torch.from_numpy(
            np.random.default_rng([*key, record_key, k]).random(len(ids), dtype=np.float32)
        )
        for k, ids in enumerate(record.response_ids)
    ]
