from collections.abc import Sequence

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.judge.questions import by_place, pair_questions, score_questions
from prefopt.evaluation.types import Answer, Prompt


def answers(prompts: Sequence[Prompt], text: str, *, num: int = 1) -> list[Answer]:
    return [
        Answer(prompt_id=each.prompt_id, turns=(text,) * len(each.turns), sample=sample)
        for each in prompts
        for sample in range(num)
    ]


def placed(given, prompts):
    return {system: by_place(system, each, prompts) for system, each in given.items()}


def test_every_turn_of_every_sample_is_a_question():
    prompt = Prompt(turns=("one", "two"))
    given = {"a": answers([prompt], "x", num=2), "b": answers([prompt], "y", num=2)}
    prompts = {prompt.prompt_id: prompt}

    asked = list(pair_questions([("a", "b")], placed(given, prompts), prompts))

    places = [(question.first.sample, question.turn) for question, _, _ in asked]
    assert places == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert {(question.first.turns[0], question.second.turns[0]) for question, _, _ in asked} == {
        ("x", "y")
    }
    assert [
        (each.turn, system)
        for each, system in score_questions(["b"], placed(given, prompts), prompts)
    ] == [
        (1, "b"),
        (2, "b"),
        (1, "b"),
        (2, "b"),
    ]


def test_a_system_that_left_prompts_out_is_named():
    prompts = [Prompt(turns=("one",)), Prompt(turns=("two",))]
    known = {each.prompt_id: each for each in prompts}
    given = {"a": answers(prompts, "x"), "b": answers(prompts[:1], "y")}

    with pytest.raises(UserError, match=r"^b has no answer to 1 of 2 prompts"):
        placed(given, known)


@pytest.mark.parametrize("pair", [("a", "b"), ("b", "a")])
def test_systems_with_different_numbers_of_samples_are_refused(pair):
    prompt = Prompt(turns=("one",))
    given = {"a": answers([prompt], "x", num=2), "b": answers([prompt], "y")}
    prompts = {prompt.prompt_id: prompt}

    with pytest.raises(UserError, match=r"^b has no sample 1 for prompt"):
        list(pair_questions([pair], placed(given, prompts), prompts))


def test_of_some_turns_only_those_are_asked():
    prompt = Prompt(turns=("one", "two"))
    prompts = {prompt.prompt_id: prompt}
    given = placed({"a": answers([prompt], "x"), "b": answers([prompt], "y")}, prompts)

    pairs = pair_questions([("a", "b")], given, prompts, turns=[2, 3])
    assert [question.turn for question, _, _ in pairs] == [2]
    assert [question.turn for question, _ in score_questions("a", given, prompts, [2])] == [2]
