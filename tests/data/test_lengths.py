"""Lengths for a plan: exact where tokens are cached, of a sample where they are not."""

import pytest

from prefopt.data import lengths
from prefopt.data.lengths import assumed_lengths, lengths_of_data
from prefopt.data.prepare import prepare_data
from prefopt.data.section import DataSection
from prefopt.errors import UserError
from tests.support.tiny import character_tokenizer, write_jsonl, write_pairs


def section(tmp_path, *files) -> DataSection:
    sources = [{"path": str(file)} for file in files]
    return DataSection.model_validate({"sources": sources, "cache_dir": tmp_path / "cache"})


def row(prompt: int, *responses: int) -> dict[str, object]:
    texts = ["r" * num for num in responses]
    return {"prompt": "p" * prompt, "responses": texts, "scores": list(range(len(texts)))}


def test_without_a_cache_the_first_rows_are_tokenised_and_nothing_is_kept(tmp_path):
    # A character is a token, and end-of-sequence one more.
    data = section(tmp_path, write_jsonl(tmp_path / "lists.jsonl", [row(5, 3, 2), row(4, 7)]))

    found = lengths_of_data(data, character_tokenizer())

    assert found.prompts.tolist() == [5, 4]
    assert found.responses.tolist() == [[4, 3], [8, 0]]
    assert found.num_records is None
    assert not (tmp_path / "cache").exists()


def test_a_sample_has_so_many_rows_of_each_source(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "_SAMPLED_ROWS", 3)
    files = [write_pairs(tmp_path / f"{name}.jsonl", 8) for name in ("one", "other")]

    found = lengths_of_data(section(tmp_path, *files), character_tokenizer())

    assert len(found.prompts) == 3 + 3
    assert "first 3 rows" in found.said_by


def test_cached_tokens_give_the_lengths_of_all_records(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "_SAMPLED_ROWS", 3)
    data = section(tmp_path, write_pairs(tmp_path / "pairs.jsonl", 8))
    store = prepare_data(data, character_tokenizer()).train

    found = lengths_of_data(data, character_tokenizer())

    assert found.prompts.tolist() == store.prompt_lengths.tolist()
    assert found.responses.flatten().tolist() == store.all_response_lengths.tolist()
    assert found.num_records == 8


def test_tokens_of_another_length_limit_are_not_taken(tmp_path):
    file = write_pairs(tmp_path / "pairs.jsonl", 8)
    prepare_data(section(tmp_path, file), character_tokenizer())
    shorter = section(tmp_path, file).model_copy(update={"max_length": 20})

    assert lengths_of_data(shorter, character_tokenizer()).num_records is None


def test_data_that_is_elsewhere_is_said_to_be(tmp_path):
    with pytest.raises(UserError, match=r"data\.sources: some/dataset is not on this machine"):
        lengths_of_data(section(tmp_path, "some/dataset"), character_tokenizer())


def test_assumed_pairs_fit_the_longest_row():
    assert assumed_lengths(1024).prompts.tolist() == [185]
    assert assumed_lengths(1024).responses.tolist() == [[305, 305]]
    assert assumed_lengths(200).responses.tolist() == [[15, 15]]
    assert assumed_lengths(1024, 4).responses.tolist() == [[305] * 4]
