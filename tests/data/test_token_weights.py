"""Weights of tokens stay with their tokens, whatever happens to responses and sources."""

import pytest

from prefopt.data.prepare import prepare_data
from prefopt.data.store import TokenStore
from tests.data.builders import char_tokenizer, prepare, section, write_lines

# By characters: two tokens each, and the end of the sequence.
ROW = {
    "prompt": "pp",
    "responses": ["ab", "cd", "ef"],
    "scores": [0.2, 0.5, 0.9],
    "token_weights": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
}
PAIR = {"prompt": "pp", "chosen": "ab", "rejected": "c"}


def weights_of(store: TokenStore) -> list[list[list[float]]]:
    return [[weights.tolist() for weights in record.token_weights] for record in store]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": "all"}, [0, 1, 2]),
        ({"keep": "best_worst"}, [2, 0]),
        ({"keep": "top_k", "top_k": 2}, [1, 2]),
    ],
)
def test_responses_that_are_kept_keep_their_own_weights(tmp_path, options, kept):
    data = prepare(tmp_path, [ROW], **options)

    assert weights_of(data.train) == [[ROW["token_weights"][k] for k in kept]]


def test_a_cut_response_keeps_the_weights_of_its_first_tokens(tmp_path):
    row = {**ROW, "responses": ["abcd", "e"], "scores": [1.0, 0.0]}
    row["token_weights"] = [[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0]]

    data = prepare(tmp_path, [row], max_length=5, too_long="cut_response")

    # 2 tokens of the prompt leave room for 3.
    assert weights_of(data.train) == [[[1.0, 2.0, 3.0], [6.0, 7.0]]]


def test_a_row_without_weights_beside_one_with_weights_has_1_everywhere(tmp_path):
    bare = {key: value for key, value in ROW.items() if key != "token_weights"}

    data = prepare(tmp_path, [bare, ROW])

    assert weights_of(data.train) == [[[1.0, 1.0, 1.0]] * 3, ROW["token_weights"]]


@pytest.mark.parametrize("bare_first", [True, False])
def test_a_source_without_weights_beside_one_with_weights_has_1_everywhere(tmp_path, bare_first):
    files = [
        write_lines(tmp_path / "bare.jsonl", [PAIR]),
        write_lines(tmp_path / "weighted.jsonl", [ROW]),
    ]
    expected = [[[1.0, 1.0, 1.0], [1.0, 1.0]], ROW["token_weights"]]
    order = slice(None) if bare_first else slice(None, None, -1)

    data = prepare_data(section(tmp_path, *files[order]), char_tokenizer())

    assert weights_of(data.train) == expected[order]


def test_a_store_without_any_weights_gives_none(tmp_path):
    data = prepare(tmp_path, [PAIR])

    assert [record.token_weights for record in data.train] == [None]
