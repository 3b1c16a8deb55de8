import json

import pytest

from prefopt.demo.task import (
    common_mistake,
    generate,
    gold_score,
    held_out_prompts,
    right_response,
    write_data,
    write_jsonl,
)


def test_the_rule_sorts_vowels_before_consonants():
    assert right_response("kteaoz:") == "aeoktz"
    assert right_response("nuibgo:") == "ioubgn"


def test_the_common_mistake_sorts_all_letters():
    assert common_mistake("kteaoz:") == "aekotz"
    assert common_mistake("nuibgo:") == "bginou"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("aeoktz", 1.0),
        ("aekotz", 4 / 6),  # o and k in each other's place
        ("aeoktq", 5 / 6),  # a slip in the last place
        ("eaotkz", 2 / 6),  # o and z
        ("zzzzzk", 0.0),
        ("", 0.0),
        ("aeo", 3 / 6),  # three right, three missing
        ("aeoktzz", 6 / 7),  # six right, one too many
        ("aeoktzaeoktz", 6 / 12),
    ],
)
def test_gold_is_the_share_of_positions_right(response, score):
    assert gold_score("kteaoz:", response) == score


def test_rows_hold_four_responses_of_mixed_quality_with_their_gold():
    rows = generate(200, seed=0)

    assert len({row["id"] for row in rows}) == 200
    for row in rows:
        assert len(row["responses"]) == 4
        assert row["scores"] == [gold_score(row["prompt"], text) for text in row["responses"]]
        assert len(set(row["scores"])) > 1


def test_the_common_mistake_is_more_frequent_than_the_right_response():
    rows = generate(500, seed=1)

    rows = [row for row in rows if common_mistake(row["prompt"]) != right_response(row["prompt"])]
    right = sum(row["responses"].count(right_response(row["prompt"])) for row in rows)
    mistaken = sum(row["responses"].count(common_mistake(row["prompt"])) for row in rows)
    # one response in four against three in four, with the same slips
    assert 0 < 2 * right < mistaken


def test_the_seed_decides_the_rows():
    assert generate(20, seed=3) == generate(20, seed=3)
    assert generate(20, seed=3) != generate(20, seed=4)
    assert generate(20, seed=3)[:5] == generate(5, seed=3)


def test_the_seed_decides_the_held_out_prompts():
    assert held_out_prompts(20, seed=3) == held_out_prompts(20, seed=3)
    assert held_out_prompts(20, seed=3) != held_out_prompts(20, seed=4)


def test_no_letters_of_a_held_out_prompt_are_trained_on():
    trained = {frozenset(row["prompt"]) for seed in (0, 1) for row in generate(2000, seed)}

    held_out = {frozenset(prompt) for prompt in held_out_prompts(500, seed=0)}

    assert not trained & held_out


def test_rows_are_written_as_lines_of_json(tmp_path):
    rows = generate(3, seed=0)
    path = tmp_path / "data" / "train.jsonl"

    write_jsonl(rows, path)

    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_desired_and_undesired_share_out_all_responses(tmp_path):
    rows = generate(50, seed=0)

    write_data(rows, tmp_path)

    found = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "desired", "undesired")
    }
    assert found["train"] == rows
    # Of six letters four or more right are desired.
    for name, is_desired in (("desired", True), ("undesired", False)):
        assert found[name] == [
            {"prompt": row["prompt"], "completion": response}
            for row in rows
            for response in row["responses"]
            if (round(6 * gold_score(row["prompt"], response)) >= 4) is is_desired
        ]
    assert len(found["desired"]) + len(found["undesired"]) == 200
