"""Tokenised records become one flat row: `[prompts | responses grouped by prompt]`."""

import torch

from prefopt.data.collate import collate
from prefopt.types import TokenizedRecord


def record(
    name: str, prompt: list[int], responses: list[list[int]], scores: list[float]
) -> TokenizedRecord:
    return TokenizedRecord(
        id=name,
        prompt_ids=torch.tensor(prompt),
        response_ids=tuple(torch.tensor(ids) for ids in responses),
        scores=tuple(scores),
    )


RECORDS = [
    record("a", [1, 2, 3], [[11, 12], [13]], [0.1, 1e9 + 0.125]),
    record("b", [4], [[14, 15, 16]], [7.0]),
    record("c", [5, 6], [[17], [18, 19], [20]], [0.0, 0.0, -1.0]),
]


def test_prompts_come_first_and_responses_follow_in_the_order_of_slots():
    batch = collate(RECORDS)

    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6, *range(11, 21)]
    assert batch.layout.prompt_lengths == (3, 1, 2)
    assert batch.layout.response_lengths == (2, 1, 3, 1, 2, 1)
    assert batch.layout.response_slots == (0, 1, 3, 6, 7, 8)
    assert batch.layout.num_slots == 3
    assert batch.layout.num_groups == 3
    assert batch.layout.num_prompt_tokens == 6
    assert batch.ids == ("a", "b", "c")


def test_a_response_starts_at_the_position_after_its_prompt():
    batch = collate(RECORDS)

    prompts = [0, 1, 2, 0, 0, 1]
    responses = [3, 4, 3, 1, 2, 3, 2, 2, 3, 2]
    assert batch.position_ids.tolist() == prompts + responses


def test_every_response_token_is_scored_in_its_slot():
    batch = collate(RECORDS)

    assert batch.targets.tolist() == list(range(11, 21))
    assert batch.response_of_token.tolist() == [0, 0, 1, 3, 3, 3, 6, 7, 7, 8]


def test_a_group_with_fewer_responses_leaves_its_last_slots_unused():
    batch = collate(RECORDS)

    assert batch.where.tolist() == [[True, True, False], [True, False, False], [True] * 3]
    assert batch.num_tokens.tolist() == [[2, 1, 0], [3, 0, 0], [1, 2, 1]]


def test_scores_lose_no_digit():
    batch = collate(RECORDS)

    # float32 would round 1e9 + 0.125 to 1e9
    assert batch.scores.tolist() == [[0.1, 1e9 + 0.125, 0], [7, 0, 0], [0, 0, -1]]


def test_all_tensors_have_the_types_that_they_promise():
    batch = collate(RECORDS)

    for name in ("input_ids", "position_ids", "targets", "response_of_token", "num_tokens"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.scores.dtype == torch.float64


def test_a_single_response_is_a_batch():
    batch = collate(RECORDS[1:2])

    assert batch.input_ids.tolist() == [4, 14, 15, 16]
    assert batch.position_ids.tolist() == [0, 1, 2, 3]
    assert batch.where.tolist() == [[True]]
