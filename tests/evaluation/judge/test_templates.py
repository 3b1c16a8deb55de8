import hashlib
import json

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.judge.template_files import load_prompts, prompt_name
from prefopt.evaluation.judge.texts import state_of
from prefopt.evaluation.types import PairQuestion, Prompt, ScoreQuestion
from tests.support.judge_server import answer, pair, score
from tests.support.shared import SHARED, needs_data

LEVELS = tuple(float(n) for n in range(1, 11))
MT_BENCH = SHARED / "mt_bench" / "judge_prompts.jsonl"


def own(*, is_bare=True, levels=LEVELS, labels=None):
    return load_prompts(None, is_bare=is_bare, levels=levels, labels=labels)


def mt_bench():
    return load_prompts(str(MT_BENCH), is_bare=True, levels=LEVELS, labels=None)


def two_turns(category=None, reference=None):
    return Prompt(turns=("First?", "Second?"), category=category, reference=reference)


def both(prompt, turn):
    return PairQuestion(
        prompt=prompt,
        first=answer(prompt, "first one", "first two"),
        second=answer(prompt, "second one", "second two"),
        turn=turn,
    )


def test_answers_are_shown_in_the_order_of_the_question():
    text = state_of(pair("left", "right"))

    assert text.index("[Answer A]\nleft") < text.index("[Answer B]\nright")
    assert text.startswith("[Request]\nSay yes.\n")


def test_a_second_turn_is_shown_with_the_whole_conversation():
    text = state_of(both(two_turns(), turn=2))

    conversation = "User: First?\n\nAssistant: first one\n\nUser: Second?\n\nAssistant: first two"
    assert f"[Conversation A]\n{conversation}\n" in text


def test_a_first_turn_is_shown_without_what_came_later():
    text = state_of(both(two_turns(), turn=1))

    assert "Second?" not in text
    assert "first two" not in text


def test_context_and_reference_are_shown():
    prompt = Prompt(
        turns=("Now?",), context=({"role": "system", "content": "Be brief."},), reference=("Yes.",)
    )

    text = state_of(ScoreQuestion(prompt=prompt, answer=answer(prompt, "Yes!")))

    assert "[Request]\nSystem: Be brief.\n\nUser: Now?\n" in text
    assert "[Reference answer]\nYes.\n" in text


def test_a_turn_that_an_answer_lacks_is_refused():
    prompt = two_turns()
    question = ScoreQuestion(prompt=prompt, answer=answer(prompt, "only one"), turn=2)

    with pytest.raises(UserError, match="turn 2 cannot be judged"):
        state_of(question)


def test_two_digit_levels_get_letters_where_one_token_is_read():
    assert own().level_labels == tuple("ABCDEFGHIJ")
    assert own(levels=(1.0, 2.0, 3.0)).level_labels == ("1", "2", "3")
    assert own(is_bare=False).level_labels[-1] == "10"
    told = own().messages(score())[0]["content"]
    assert "A for 1," in told
    assert "J for 10" in told


def test_own_prompts_ask_for_a_label_or_for_a_verdict():
    assert (
        own()
        .messages(pair())[0]["content"]
        .endswith("Say nothing but the label: A if A is better, B if B is better.")
    )
    with_tie = own(is_bare=False, labels=("A", "B", "C")).messages(pair())[0]["content"]
    assert "[[A]]" in with_tie
    assert with_tie.endswith("C if they are equally good.")


@needs_data
@pytest.mark.parametrize(
    ("category", "turn", "name"),
    [
        ("writing", 1, "pair-v2"),
        ("writing", 2, "pair-v2-multi-turn"),
        ("math", 1, "pair-math-v1"),
        ("coding", 2, "pair-math-v1-multi-turn"),
        (None, 1, "pair-v2"),
    ],
)
def test_category_and_turn_choose_the_prompt_of_mt_bench(category, turn, name):
    question = both(two_turns(category, ("R one", "R two")), turn)
    rows = [json.loads(line) for line in MT_BENCH.read_text(encoding="utf-8").splitlines()]
    row = next(row for row in rows if row["name"] == name)
    # The reference way, as no text here holds braces.
    places = {
        "question": "First?",
        "answer_a": "first one",
        "answer_b": "second one",
        "question_1": "First?",
        "question_2": "Second?",
        "answer_a_1": "first one",
        "answer_a_2": "first two",
        "answer_b_1": "second one",
        "answer_b_2": "second two",
        "ref_answer_1": "R one",
        "ref_answer_2": "R two",
    }

    assert prompt_name(question) == name
    system, user = mt_bench().messages(question)
    assert system == {"role": "system", "content": row["system_prompt"]}
    assert user == {"role": "user", "content": row["prompt_template"].format(**places)}


@needs_data
def test_single_answers_of_mathematics_are_judged_with_the_reference():
    prompt = two_turns("reasoning", ("R one", "R two"))
    question = ScoreQuestion(prompt=prompt, answer=answer(prompt, "one", "two"), turn=2)

    text = mt_bench().messages(question)[1]["content"]

    assert prompt_name(question) == "single-math-v1-multi-turn"
    assert "### Reference answer:\nR two" in text
    assert "### Assistant A:\ntwo" in text


@needs_data
def test_a_missing_reference_is_said():
    with pytest.raises(UserError, match="category math is judged with a reference answer"):
        mt_bench().messages(both(two_turns("math"), turn=1))


@needs_data
def test_braces_in_an_answer_stay_as_they_are():
    text = mt_bench().messages(pair("{answer_b} {x}", "f'{y}'"))[1]["content"]

    assert "Assistant A's Answer]\n{answer_b} {x}\n" in text
    assert "Assistant B's Answer]\nf'{y}'\n" in text


def test_a_file_without_all_prompts_of_mt_bench_is_refused(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"name": "pair-v2", "system_prompt": "", "prompt_template": ""}\n')

    with pytest.raises(UserError, match="lacks the prompt pair-math-v1"):
        load_prompts(str(file), is_bare=True, levels=LEVELS, labels=None)


CHATML = """<|im_start|>system
You rank.
<|im_end|>
<|im_start|>user
Asked: {instruction}
{"m": "{output_1}", "M": "{output_2}"}
<|im_end|>
<|im_start|>assistant
"""


def alpaca(tmp_path, text=CHATML):
    file = tmp_path / "clf.txt"
    file.write_text(text)
    return load_prompts(str(file), is_bare=False, levels=LEVELS, labels=None)


def test_alpaca_evals_form_gives_messages_and_its_labels(tmp_path):
    prompts = alpaca(tmp_path)

    assert prompts.pair_labels == ("m", "M")
    assert prompts.kinds == {"pair"}
    assert prompts.messages(pair("<|im_end|>", "no")) == [
        {"role": "system", "content": "You rank."},
        {"role": "user", "content": 'Asked: Say yes.\n{"m": "<|im_end|>", "M": "no"}'},
    ]
    assert prompts.identity == {
        "name": "alpaca:clf.txt",
        "sha": hashlib.sha256(CHATML.encode()).hexdigest()[:16],
    }


def test_a_form_without_a_place_for_an_output_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \{output_2\}"):
        alpaca(tmp_path, CHATML.replace("{output_2}", ""))


def test_a_file_of_another_sort_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither a \.jsonl"):
        load_prompts(str(tmp_path / "x.yaml"), is_bare=True, levels=LEVELS, labels=None)
    with pytest.raises(UserError, match="no file"):
        load_prompts(str(tmp_path / "x.txt"), is_bare=True, levels=LEVELS, labels=None)
