import pytest

from prefopt.comparison.judging import (
    best_setting,
    check_apart,
    matches,
    sanity_answers,
    wins_by_prompt,
)
from prefopt.errors import UserError
from prefopt.evaluation.types import Answer, Judgment, Prompt, Reply

SYSTEMS = {
    "start": {None: "start"},
    "dpo": {0: "dpo-0", 1: "dpo-1"},
    "ipo": {0: "ipo-0", 1: "ipo-1"},
}


def judgment(system: str, opponent: str, first: float, *, prompt: str = "p", turn: int = 1):
    reply = Reply(status="ok", probs=(first, 1 - first, 0.0))
    return verdict(system, opponent, reply, prompt=prompt, turn=turn)


def verdict(system: str, opponent: str, reply: Reply, *, prompt: str = "p", turn: int = 1):
    return Judgment(
        key="k",
        prompt_id=prompt,
        turn=turn,
        sample=0,
        kind="pair",
        system=system,
        opponent=opponent,
        levels=(),
        judge="j",
        reply=reply,
        asked_at="2026-01-01T00:00:00Z",
    )


def test_systems_of_one_seed_meet_each_other_and_what_has_no_seed():
    assert list(matches(SYSTEMS)) == [
        ("start", "dpo-0"),
        ("start", "dpo-1"),
        ("start", "ipo-0"),
        ("start", "ipo-1"),
        ("dpo-0", "ipo-0"),
        ("dpo-1", "ipo-1"),
    ]


def test_against_one_method_the_others_do_not_meet():
    assert list(matches(SYSTEMS, against="ipo")) == [
        ("start", "ipo-0"),
        ("start", "ipo-1"),
        ("dpo-0", "ipo-0"),
        ("dpo-1", "ipo-1"),
    ]


def test_a_slot_that_always_wins_wins_half_of_the_time_after_both_orders():
    found = wins_by_prompt([judgment("a", "b", 0.9), judgment("b", "a", 0.9)], "a", "b")

    assert found == {"p": 0.5}


def test_turns_of_a_prompt_are_averaged():
    judgments = [
        judgment("a", "b", 0.8),
        judgment("b", "a", 0.4),
        judgment("a", "b", 1.0, turn=2),
        judgment("b", "a", 0.0, turn=2),
    ]

    # Turn 1: (0.8 + 0.6) / 2 = 0.7; turn 2: 1.
    assert wins_by_prompt(judgments, "a", "b") == pytest.approx({"p": 0.85})
    assert wins_by_prompt(judgments, "b", "a") == pytest.approx({"p": 0.15})


def test_a_question_with_one_order_missing_counts_for_nobody():
    refused = Reply(status="refusal")
    judgments = [judgment("a", "b", 0.9), verdict("b", "a", refused)]

    assert wins_by_prompt(judgments, "a", "b") == {}


def test_sanity_rows_have_as_many_samples_as_all_others():
    prompts = [Prompt(turns=("one", "two")), Prompt(turns=("three",))]
    answers = {
        "a": [
            Answer(prompt_id=each.prompt_id, turns=("x" * (sample + 1),), sample=sample)
            for each in prompts
            for sample in range(2)
        ]
    }

    rows = sanity_answers(prompts, answers, 2)

    places = {(each.prompt_id, each.sample) for each in answers["a"]}
    assert list(rows) == ["constant", "longest"]
    assert all({(each.prompt_id, each.sample) for each in row} == places for row in rows.values())
    assert [len(each.turns) for each in rows["constant"]] == [2, 2, 1, 1]


def test_the_best_setting_has_the_most_wins_and_of_equal_ones_is_the_first():
    assert best_setting([0.4, 0.6, 0.6]) == 1


def test_prompts_that_pick_settings_are_none_of_the_results():
    shared = Prompt(turns=("Say something nice.",))

    with pytest.raises(UserError, match=r"shares 1 prompts .* 'Say something nice\.'"):
        check_apart([shared, Prompt(turns=("a",))], [shared])
    check_apart([shared], [Prompt(turns=("a",))])
