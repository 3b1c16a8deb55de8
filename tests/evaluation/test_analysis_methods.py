import pytest

from prefopt.errors import UserError
from prefopt.evaluation.analysis import longest_answers, method_numbers, null_answers
from prefopt.evaluation.types import Prompt
from tests.support.judged import answer


def rows_of(answers, methods=None, **fields):
    methods = methods or {name: [name] for name in answers}
    rows = method_numbers(answers, methods, "base", **{"seeds": {}, "settings": {}, **fields})
    return {row["name"]: row for row in rows}


def test_lengths_and_their_ratio_are_over_prompts():
    answers = {
        "base": [answer("p", 10), answer("q", 30)],
        "a": [answer("p", 20, sample=0), answer("p", 40, sample=1), answer("q", 50)],
    }

    rows = rows_of(answers)

    # Samples are averaged first: 30 and 50 against 10 and 30.
    assert rows["a"]["length"]["value"] == pytest.approx(40)
    assert rows["a"]["length"]["n"] == 2
    assert rows["a"]["length_ratio"]["value"] == pytest.approx(40 / 20)
    assert rows["base"]["length_ratio"] is None
    assert rows["base"]["kind"] == "baseline"


def test_the_ratio_is_over_prompts_that_both_answered():
    answers = {"base": [answer("p", 10)], "a": [answer("p", 15), answer("q", 1000)]}

    rows = rows_of(answers)

    assert rows["a"]["length_ratio"]["value"] == pytest.approx(1.5)
    assert rows["a"]["length_ratio"]["n"] == 1


def test_answers_that_were_cut_or_empty_are_counted():
    answers = {
        "base": [answer(p, finish_reasons=("stop",)) for p in "pqrs"],
        "a": [
            answer("p", finish_reasons=("stop", "length"), turns=("x", "y")),
            answer("q", finish_reasons=("stop",), turns=(" \n",)),
            answer("r", finish_reasons=("stop",)),
            answer("s", finish_reasons=("stop",)),
        ],
    }

    rows = rows_of(answers)

    assert rows["a"]["share_cut"]["value"] == 0.25
    assert rows["a"]["share_empty"]["value"] == 0.25
    # 0 of 4: Clopper and Pearson's upper bound.
    assert rows["base"]["share_cut"]["high"] == pytest.approx(1 - 0.025**0.25)


def test_unknown_reasons_to_finish_are_over_no_prompt():
    rows = rows_of({"base": [answer("p")], "a": [answer("p")]})

    assert rows["a"]["share_cut"] == {
        "value": 0.0,
        "low": None,
        "high": None,
        "n": 0,
        "unit": "prompts, one seed",
    }


def test_seeds_settings_and_kinds_are_kept():
    answers = {name: [answer("p"), answer("q", 20)] for name in ("base", "a0", "a1", "null")}
    methods = {"base": ["base"], "a": ["a0", "a1"], "null": ["null"]}

    rows = rows_of(
        answers, methods, seeds={"a": [3, 4]}, settings={"a": {"beta": 0.1}}, sanity=("null",)
    )

    assert (rows["a"]["seeds"], rows["a"]["settings"]) == ([3, 4], {"beta": 0.1})
    assert rows["a"]["length"]["unit"] == "prompts, 2 seeds"
    assert [row["kind"] for row in rows.values()] == ["baseline", "candidate", "sanity"]
    assert rows["null"]["seeds"] == []


def test_a_baseline_of_empty_answers_has_no_ratio():
    rows = rows_of({"base": [answer("p", 0)], "a": [answer("p")]})

    assert rows["a"]["length_ratio"] is None


def test_a_system_without_answers_is_named():
    with pytest.raises(UserError, match="System a has no answers"):
        rows_of({"base": [answer("p")], "a": []})


def test_the_longest_answer_is_taken_prompt_by_prompt_and_sample_by_sample():
    answers = {
        "a": [answer("p", 5), answer("q", 9), answer("p", 7, sample=1)],
        "b": [answer("p", 8), answer("q", 9, finish_reasons=("length",)), answer("r", 1)],
    }

    longest = {(each.prompt_id, each.sample): each for each in longest_answers(answers)}

    assert longest["p", 0] is answers["b"][0]
    assert longest["q", 0] is answers["a"][1]
    assert longest["p", 1] is answers["a"][2]
    assert longest["r", 0] is answers["b"][2]


def test_the_null_answer_says_the_same_on_every_turn():
    prompts = [Prompt(turns=("one", "two")), Prompt(turns=("three",))]

    answers = null_answers(prompts, "Yes.")

    assert [each.turns for each in answers] == [("Yes.", "Yes."), ("Yes.",)]
    assert [each.prompt_id for each in answers] == [each.prompt_id for each in prompts]
