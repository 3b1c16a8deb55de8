import json

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.generate.answers import (
    check_same_prompts,
    header_of,
    line_of,
    read_answers,
    read_beside,
)
from prefopt.evaluation.types import Answer

HEADER = header_of("m", "folder", {"temperature": 0.0})
ANSWERS = [
    Answer(prompt_id="p", turns=("a", "b"), num_tokens=(1, 2), finish_reasons=("stop", "length")),
    Answer(prompt_id="p", turns=("c", "d"), sample=1),
]


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_what_was_written_is_read(tmp_path):
    lines = [line_of(each, seed=3) for each in ANSWERS]
    path = write(tmp_path / "a.jsonl", HEADER, *lines)

    header, answers = read_answers(path)

    assert header == HEADER
    assert answers == ANSWERS
    assert read_beside(path) == {}


def test_what_stands_beside_an_answer_is_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", HEADER, line_of(ANSWERS[1], extra={"tstamp": 1.5}))

    assert read_beside(path) == {("p", 1): {"tstamp": 1.5}}


def test_an_answer_that_was_being_written_is_passed_over(tmp_path):
    path = write(tmp_path / "a.jsonl", HEADER, line_of(ANSWERS[0]))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"prompt_id": "q", "tur')

    assert read_answers(path)[1] == ANSWERS[:1]


GOOD = line_of(ANSWERS[0])


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], r"a\.jsonl: no file of answers"),
        ([{"schema": "prefopt/judgments/1"}], r"a\.jsonl: no file of answers"),
        ([{**HEADER, "system": None}], r"a\.jsonl:1: the header names no system"),
        ([HEADER, GOOD, GOOD], r"a\.jsonl:3: sample 0 of prompt p is in line 2 too"),
        ([HEADER, {"prompt_id": "p"}], r"a\.jsonl:2: no answer: give prompt_id and turns"),
        ([HEADER, {**GOOD, "turns": []}], r"a\.jsonl:2: no answer"),
        ([HEADER, {**GOOD, "turns": [1]}], r"a\.jsonl:2: no answer"),
        ([HEADER, {**GOOD, "sample": "x"}], r"a\.jsonl:2: sample must be a whole number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, problem):
    with pytest.raises(UserError, match=problem):
        read_answers(write(tmp_path / "a.jsonl", *lines))


def test_answers_to_other_prompts_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"x\.jsonl: 2 of 2 answers are to other prompts"):
        check_same_prompts("x.jsonl", ANSWERS, {"q"})
    check_same_prompts("x.jsonl", ANSWERS, {"p", "q"})
