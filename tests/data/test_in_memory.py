"""Records that a program holds become the micro-batch that training would see."""

import pytest

from prefopt.data.in_memory import batch_of
from prefopt.demo.model import build_tokenizer
from prefopt.errors import UserError
from prefopt.types import PreferenceRecord


def record(prompt, *responses) -> PreferenceRecord:
    scores = tuple(float(-k) for k in range(len(responses)))
    return PreferenceRecord(id="mine:1", prompt=prompt, responses=responses, scores=scores)


def test_a_response_ends_once_and_unused_slots_hold_nothing():
    tokenizer = build_tokenizer()

    batch = batch_of([record("abc:", "ab", "b", "abcd"), record("d:", "ba")], tokenizer)

    assert batch.where.tolist() == [[True, True, True], [True, False, False]]
    assert batch.num_tokens.tolist() == [[3, 2, 5], [3, 0, 0]]
    assert batch.scores.tolist() == [[0.0, -1.0, -2.0], [0.0, 0.0, 0.0]]
    assert tokenizer.decode(batch.targets) == "ab<eos>b<eos>abcd<eos>ba<eos>"


def test_a_record_that_cannot_be_rendered_is_named():
    question = [{"role": "user", "content": "a"}]
    answer = [{"role": "assistant", "content": "b"}]

    with pytest.raises(UserError, match=r"^mine:1: holds messages, but the tokenizer has no chat"):
        batch_of([record(question, answer)], build_tokenizer())
