import json

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.judge.runner import run_judge
from tests.support.judge_server import judge_of, pair, score

GOLD = "prefopt.demo.task:gold_score"


def question(first, second):
    return pair(first, second, "kteaoz:")


def annotations(tmp_path, *rows):
    file = tmp_path / "annotations.json"
    columns = ("instruction", "output_1", "output_2", "preference")
    file.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in rows]))
    return str(file)


def replay(path, asked):
    with judge_of(backend="replay", path=str(path)) as judge:
        judge.rendered(asked)
        return judge.ask(asked)


def test_judgments_are_found_by_their_texts_and_are_the_same(tmp_path):
    first, second = question("aeoktz", "aekotz"), question("aeoktz", "zzzzzz")
    asked_score = score("aekotz", "kteaoz:")
    with judge_of(backend="rule", function=GOLD, temperature=0.5, levels=[0, 1]) as judge:
        old = run_judge(
            judge,
            [(first, "a", "b"), (second, "a", "c")],
            [(asked_score, "b")],
            tmp_path / "1.jsonl",
        )

    with judge_of(backend="replay", path=str(tmp_path / "1.jsonl")) as judge:
        assert judge.kinds == {"pair", "score"}
        assert judge.levels == (0.0, 1.0)
        assert judge.name == "gold_score"
        # Other systems, in another order: the texts count.
        new = run_judge(
            judge,
            [(second, "x", "y"), (first, "x", "z")],
            [(asked_score, "z")],
            tmp_path / "2.jsonl",
        )

    assert [each.reply for each in new] == [old[n].reply for n in (2, 3, 0, 1, 4)]


def test_a_question_that_was_not_judged_is_one_line(tmp_path):
    with judge_of(backend="rule", function=GOLD) as judge:
        run_judge(judge, [(question("aeoktz", "x"), "a", "b")], [], tmp_path / "1.jsonl")

    with pytest.raises(UserError, match="has no pair judgment of these answers to the prompt 'kte"):
        replay(tmp_path / "1.jsonl", question("aeoktz", "y"))


def test_a_preference_of_alpaca_eval_is_seen_from_either_side(tmp_path):
    path = annotations(tmp_path, ("Say yes.", "no", "yes", 1.75), ("Say it.", "a", "b", "1.5"))

    assert replay(path, pair("no", "yes")).probs == (0.25, 0.75, 0.0)
    assert replay(path, pair("yes", "no")).probs == (0.75, 0.25, 0.0)
    assert replay(path, pair("a", "b", "Say it.")).probs == (0.0, 0.0, 1.0)


def test_a_preference_that_was_not_read_is_missing(tmp_path):
    path = annotations(tmp_path, ("Say yes.", "no", "yes", None))

    assert replay(path, pair("no", "yes")).status == "parse_error"
    assert replay(path, pair("yes", "no")).status == "parse_error"


def test_annotations_without_outputs_are_refused(tmp_path):
    file = tmp_path / "annotations.json"
    file.write_text('[{"instruction": "x", "preference": 1.0}]')

    with pytest.raises(UserError, match="row 0 has no instruction, output_1 and output_2"):
        replay(file, pair())


def test_a_preference_out_of_range_is_refused(tmp_path):
    with pytest.raises(UserError, match="row 0: preference 3 is not between 1 and 2"):
        replay(annotations(tmp_path, ("x", "a", "b", 3)), pair())


def test_a_file_that_is_absent_or_something_else_is_refused(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"schema": "x"}\n')
    (tmp_path / "other.json").write_text("{}")
    for name, message in (
        ("absent.json", "no file"),
        ("other.jsonl", "not a file of judgments"),
        ("other.json", "no list of annotations"),
    ):
        with pytest.raises(UserError, match=message):
            replay(tmp_path / name, pair())
