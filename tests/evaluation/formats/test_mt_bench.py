import json

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.formats.mt_bench import read_model_answers, write_model_answers
from prefopt.evaluation.formats.mt_bench_judgments import (
    read_pair,
    read_single,
    write_pair,
    write_single,
)
from prefopt.evaluation.suites import read_prompts
from prefopt.evaluation.types import Answer, Judgment, Prompt, Reply
from tests.support.shared import SHARED, needs_data

DATA = SHARED / "mt_bench"

PROMPTS = [
    Prompt(turns=("Grüße?", "And?"), source_id="81", category="writing"),
    Prompt(turns=("1+1?", "2+2?"), source_id="111", category="math"),
]
ANSWERS = [
    Answer(prompt_id=prompt.prompt_id, turns=(f"ä{sample}", "b"), sample=sample)
    for prompt in PROMPTS
    for sample in (0, 1)
]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def judged(kind, prompt, turn, system, opponent=None, *, probs, levels=(), raw=""):
    return Judgment(
        key=f"{prompt.prompt_id}/{turn}/{system}",
        prompt_id=prompt.prompt_id,
        turn=turn,
        sample=0,
        kind=kind,
        system=system,
        opponent=opponent,
        levels=levels,
        judge="J",
        reply=Reply(status="ok" if probs else "refusal", probs=probs, raw=raw),
        asked_at="2026-11-26T00:00:00+00:00",
    )


@needs_data
def test_real_answers_come_back_byte_by_byte(tmp_path):
    path = DATA / "reference_answer" / "gpt-4.jsonl"
    prompts = [each for each in read_prompts(DATA / "question.jsonl") if each.reference]

    model_id, answers, beside = read_model_answers(path, prompts)
    write_model_answers(tmp_path / "a.jsonl", prompts, answers, model_id, tstamp=0.0, beside=beside)

    assert len(answers) == 30
    assert (tmp_path / "a.jsonl").read_bytes() == path.read_bytes()


def test_answers_have_the_official_fields(tmp_path):
    path = tmp_path / "m.jsonl"

    write_model_answers(path, PROMPTS, ANSWERS, "m", tstamp=1.5)

    first, second = lines_of(path)
    answer_id = first.pop("answer_id")
    assert list(first.items()) == [
        ("question_id", 81),
        ("model_id", "m"),
        ("choices", [{"index": 0, "turns": ["ä0", "b"]}, {"index": 1, "turns": ["ä1", "b"]}]),
        ("tstamp", 1.5),
    ]
    assert list(second) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert len(answer_id) == 22
    assert answer_id != second["answer_id"]
    # As json.dumps of FastChat writes it.
    assert "\\u00e40" in path.read_text(encoding="utf-8")


def test_exported_answers_come_back(tmp_path):
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    write_model_answers(first, PROMPTS, ANSWERS, "m", tstamp=1.5)

    model_id, answers, beside = read_model_answers(first, PROMPTS)
    write_model_answers(second, PROMPTS, answers, model_id, tstamp=9.0, beside=beside)

    assert (model_id, answers) == ("m", ANSWERS)
    assert first.read_bytes() == second.read_bytes()


SINGLE = [
    {
        "question_id": 81,
        "model": "m",
        "judge": ["gpt-4", "single-v1"],
        "user_prompt": "How good?",
        "judgment": "Fine. [[7]]",
        "score": 7,
        "turn": 1,
        "tstamp": 1686286937.7164738,
    },
    {
        "question_id": 81,
        "model": "m",
        "judge": ["gpt-4", "single-v1-multi-turn"],
        "user_prompt": "How good?",
        "judgment": "Hm.",
        "score": -1,
        "turn": 2,
        "tstamp": 1686286937.5,
    },
]
PAIR = [
    {
        "question_id": 111,
        "model_1": "m",
        "model_2": "b",
        "g1_winner": winners[0],
        "g2_winner": winners[1],
        "judge": ["gpt-4", "pair-v2"],
        "g1_user_prompt": "A?",
        "g1_judgment": "[[A]]",
        "g2_user_prompt": "B?",
        "g2_judgment": "[[B]]",
        "turn": turn,
        "tstamp": 1686286937.7164738,
    }
    for turn, winners in ((1, ("model_1", "tie")), (2, ("error", "model_1")))
]


def test_official_judgments_come_back_byte_by_byte(tmp_path):
    single, pair = tmp_path / "single.jsonl", tmp_path / "pair.jsonl"
    scores = read_single(write(single, SINGLE), PROMPTS)
    pairs = read_pair(write(pair, PAIR), PROMPTS)

    assert write_single(tmp_path / "s.jsonl", PROMPTS, scores) == 2
    assert write_pair(tmp_path / "p.jsonl", PROMPTS, pairs) == 2

    assert (tmp_path / "s.jsonl").read_bytes() == single.read_bytes()
    assert (tmp_path / "p.jsonl").read_bytes() == pair.read_bytes()
    assert [(each.levels, each.reply.probs) for each in scores] == [((7.0,), (1.0,)), ((), ())]
    assert [each.reply.status for each in scores] == ["ok", "parse_error"]
    # model_1 is shown first in g1 and second in g2.
    assert [(each.system, each.reply.probs) for each in pairs] == [
        ("m", (1.0, 0.0, 0.0)),
        ("b", (0.0, 0.0, 1.0)),
        ("m", ()),
        ("b", (0.0, 1.0, 0.0)),
    ]


def test_scores_are_the_mean_of_the_distribution(tmp_path):
    path, again = tmp_path / "s.jsonl", tmp_path / "again.jsonl"
    judgments = [
        judged("score", PROMPTS[0], 1, "m", probs=(0.25, 0.75), levels=(1.0, 2.0), raw="r"),
        judged("score", PROMPTS[0], 2, "m", probs=(0.0, 1.0), levels=(1.0, 2.0)),
        judged("score", PROMPTS[1], 1, "m", probs=(), levels=(1.0, 2.0)),
    ]

    write_single(path, PROMPTS, judgments)
    write_single(again, PROMPTS, read_single(path, PROMPTS))

    lines = lines_of(path)
    assert [line["score"] for line in lines] == [1.75, 2, -1]
    assert lines[0] == {
        "question_id": 81,
        "model": "m",
        "judge": ["J", "prefopt"],
        "user_prompt": "",
        "judgment": "r",
        "score": 1.75,
        "turn": 1,
        "tstamp": 1795651200.0,
    }
    assert path.read_bytes() == again.read_bytes()


def test_both_orders_of_a_pair_are_one_line(tmp_path):
    path, again = tmp_path / "p.jsonl", tmp_path / "again.jsonl"
    judgments = [
        judged("pair", PROMPTS[0], 1, "m", "b", probs=(0.75, 0.25, 0.0), raw="x"),
        judged("pair", PROMPTS[0], 1, "b", "m", probs=(0.5, 0.5, 0.0), raw="y"),
        judged("pair", PROMPTS[0], 2, "b", "m", probs=(0.75, 0.25, 0.0)),
        judged("pair", PROMPTS[0], 2, "m", "b", probs=(), raw="no"),
        judged("pair", PROMPTS[1], 1, "m", "b", probs=(0.25, 0.25, 0.5)),
    ]

    write_pair(path, PROMPTS, judgments)
    write_pair(again, PROMPTS, read_pair(path, PROMPTS))

    found = [
        tuple(line[key] for key in ("model_1", "g1_winner", "g2_winner", "g1_judgment"))
        for line in lines_of(path)
    ]
    assert found == [
        ("m", "model_1", "tie", "x"),
        ("b", "model_1", "error", ""),
        # The second order was never asked.
        ("m", "tie", "error", ""),
    ]
    assert path.read_bytes() == again.read_bytes()


LINE = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]}


@pytest.mark.parametrize(
    ("read", "rows", "problem"),
    [
        (read_model_answers, [LINE | {"question_id": 9}], "question_id 9 is none of the prompts"),
        (read_model_answers, [LINE, LINE], r"f\.jsonl:2: a second answer to question 81"),
        (read_model_answers, [LINE, LINE | {"model_id": "n"}], r":2: of n, the lines before are"),
        (read_model_answers, [LINE | {"choices": [{"index": 0}]}], r":1: choices must be a list"),
        (
            read_model_answers,
            [LINE | {"choices": [{"index": 0, "turns": ["a"]}]}],
            "1 turns, where question 81 has 2",
        ),
        (read_single, [SINGLE[0], SINGLE[0]], r"f\.jsonl:2: the same question as in"),
        (read_single, [SINGLE[0] | {"score": "7"}], r":1: score must be a number"),
        (read_single, [SINGLE[0] | {"turn": 3}], r":1: turn 3 of 2"),
        (read_single, [{"question_id": 81}], r":1: no model\. "),
        (read_single, [SINGLE[0] | {"judge": "gpt-4"}], r":1: judge must be a list"),
        (read_pair, [PAIR[0] | {"g2_winner": "A"}], r":1: g2_winner 'A' is none of model_1"),
        (read_pair, [PAIR[0], PAIR[0]], r":2: the same question as in"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, read, rows, problem):
    with pytest.raises(UserError, match=problem):
        read(write(tmp_path / "f.jsonl", rows), PROMPTS)


def test_what_cannot_be_exported_is_one_line(tmp_path):
    path = tmp_path / "out.jsonl"
    nameless = Prompt(turns=("a",))
    answer = Answer(prompt_id=nameless.prompt_id, turns=("b",))

    with pytest.raises(UserError, match="m has no answer to prompt 111 '1"):
        write_model_answers(path, PROMPTS, ANSWERS[:2], "m", tstamp=0.0)
    with pytest.raises(UserError, match="has no question_id"):
        write_model_answers(path, [nameless], [answer], "m", tstamp=0.0)
    with pytest.raises(UserError, match="no score of these prompts"):
        write_single(path, PROMPTS, [])
    with pytest.raises(UserError, match="no judged pair of these prompts"):
        write_pair(path, PROMPTS, [])
