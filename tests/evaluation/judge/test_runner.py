import json
from collections import Counter

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.judge.judgments import read_judgments
from prefopt.evaluation.judge.runner import IDENTICAL, run_judge
from prefopt.evaluation.types import Prompt, ScoreQuestion
from tests.support.judge_server import (
    Said,
    always,
    answer,
    chat,
    chat_judge,
    error,
    judge_of,
    pair,
    score,
)

GOOD = chat("A", {"A": 0.75, "B": 0.25})


def many(num):
    return [(pair(f"yes {n}", f"no {n}", f"Question {n}?"), "ours", "base") for n in range(num)]


def run(judge, pairs, path, scores=(), **options):
    return run_judge(judge, pairs, scores, path, **options)


def test_both_orders_are_asked_and_the_slot_cancels_exactly(tmp_path):
    # A judge that always prefers the first slot.
    with chat_judge(always(GOOD)) as (judge, server):
        found = run(judge, many(3), tmp_path / "j.jsonl")

        assert len(server.requests) == 6
    orders = [(each.system, each.opponent) for each in found]
    assert orders == [("ours", "base"), ("base", "ours")] * 3
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one.win + (1 - other.win)) / 2 == 0.5


def test_the_file_holds_what_is_returned(tmp_path):
    with chat_judge(always(GOOD), name="J") as (judge, _):
        found = run(judge, many(2), tmp_path / "j.jsonl")
        identity = judge.identity

    header, stored = read_judgments(tmp_path / "j.jsonl")
    assert header == {
        "schema": "prefopt/judgments/1",
        "judge": {"name": "J", "identity": json.loads(json.dumps(identity))},
    }
    assert sorted(stored, key=lambda each: each.key) == sorted(found, key=lambda each: each.key)
    line = json.loads((tmp_path / "j.jsonl").read_text().splitlines()[1])
    assert line["status"] == "ok"
    assert line["probs"] == pytest.approx([0.75, 0.25, 0.0])


def test_identical_answers_tie_without_a_call(tmp_path):
    with chat_judge(always(GOOD)) as (judge, server):
        found = run(judge, [(pair("same", "same"), "a", "b")], tmp_path / "j.jsonl")

        assert server.requests == []
    assert [each.win for each in found] == [0.5, 0.5]
    assert {each.reply.raw for each in found} == {IDENTICAL}


def test_only_the_turns_that_are_judged_make_answers_identical(tmp_path):
    prompt = Prompt(turns=("One?", "Two?"))
    question = pair()
    question = type(question)(
        prompt=prompt, first=answer(prompt, "same", "x"), second=answer(prompt, "same", "y"), turn=1
    )
    with chat_judge(always(GOOD)) as (judge, server):
        run(judge, [(question, "a", "b")], tmp_path / "j.jsonl")

        assert server.requests == []


def test_a_second_run_asks_nothing(tmp_path):
    with chat_judge(always(GOOD)) as (judge, server):
        first = run(judge, many(4), tmp_path / "j.jsonl")
        second = run(judge, many(4), tmp_path / "j.jsonl")

        assert len(server.requests) == 8
    assert second == first


def test_the_same_question_for_two_pairs_of_systems_is_asked_once(tmp_path):
    pairs = [(pair("x", "y"), "a", "base"), (pair("x", "y"), "b", "base")]
    with chat_judge(always(GOOD)) as (judge, server):
        found = run(judge, pairs, tmp_path / "j.jsonl")
        more = run(judge, [*pairs, (pair("x", "y"), "c", "base")], tmp_path / "j.jsonl")

        assert len(server.requests) == 2
    assert [each.system for each in found] == ["a", "base", "b", "base"]
    assert len({each.key for each in found}) == 2
    assert [each.reply for each in more[4:]] == [each.reply for each in more[:2]]
    assert len(read_judgments(tmp_path / "j.jsonl")[1]) == 6


def test_pairs_and_scores_are_kept_apart(tmp_path):
    said = chat("A", {"A": 0.25, "B": 0.25, "3": 0.5})
    with chat_judge(always(said), levels=[1, 2, 3]) as (judge, server):
        found = run(judge, many(1), tmp_path / "j.jsonl", [(score(), "ours")])

        assert len(server.requests) == 3
    assert [each.kind for each in found] == ["pair", "pair", "score"]
    assert [each.levels for each in found] == [(), (), (1.0, 2.0, 3.0)]
    assert found[-1].opponent is None


def test_errors_of_the_api_are_asked_again_and_other_statuses_are_kept(tmp_path):
    def script(body):
        text = body["messages"][0]["content"]
        if "Question 1?" in text:
            return error(500, "oh")
        if "Question 2?" in text:
            return chat(None, refusal="No.")
        return GOOD

    with chat_judge(script) as (judge, server):
        first = run(judge, many(4), tmp_path / "j.jsonl", allow_missing=True)
        server.script = always(GOOD)
        second = run(judge, many(4), tmp_path / "j.jsonl", allow_missing=True)

        assert len(server.requests) == 8 + 2
    assert Counter(each.reply.status for each in first) == {"ok": 4, "api_error": 2, "refusal": 2}
    assert Counter(each.reply.status for each in second) == {"ok": 6, "refusal": 2}
    assert Counter(e.reply.status for e in read_judgments(tmp_path / "j.jsonl")[1])["ok"] == 6


def test_coverage_under_99_percent_fails_after_all_is_written(tmp_path):
    def script(body):
        is_odd = "Question 7?" in body["messages"][0]["content"]
        return chat("Hm", {"Hm": 1.0}) if is_odd else GOOD

    with chat_judge(script) as (judge, _):
        with pytest.raises(UserError) as caught:
            run(judge, many(99), tmp_path / "j.jsonl")
        # 2 of 198 are missing: 98.99 %. Of 200 they are exactly 1 %, which is allowed.
        assert len(read_judgments(tmp_path / "j.jsonl")[1]) == 198
        assert len(run(judge, many(100), tmp_path / "j.jsonl")) == 200
        assert len(run(judge, many(99), tmp_path / "j.jsonl", allow_missing=True)) == 198
    message = str(caught.value)
    assert "only 196 of 198 questions have a judgment (99.0%, wanted 99%): 2 parse_error" in message
    assert "none of A, B is among" in message


def test_a_judge_that_cannot_be_used_ends_the_run_at_the_first_question(tmp_path):
    with chat_judge(always(error(401, "no")), num_in_flight=32) as (judge, server):
        with pytest.raises(UserError, match="status 401"):
            run(judge, many(20), tmp_path / "j.jsonl", allow_missing=True)

        assert len(server.requests) == 1
    assert read_judgments(tmp_path / "j.jsonl")[1] == []


def test_the_same_error_later_is_a_missing_judgment(tmp_path):
    def script(body):
        is_first = "Question 0?" in body["messages"][0]["content"]
        return GOOD if is_first else error(401, "expired")

    with chat_judge(script) as (judge, _):
        found = run(judge, many(2), tmp_path / "j.jsonl", allow_missing=True)

    assert [each.reply.status for each in found] == ["ok", "ok", "api_error", "api_error"]
    assert "status 401: expired" in found[-1].reply.problem


def test_a_server_that_dies_ends_the_run_before_all_is_tried(tmp_path):
    def script(body):
        number = int(body["messages"][0]["content"].split("Question ")[1].split("?")[0])
        return GOOD if number < 20 else error(503, "gone")

    with chat_judge(script, num_in_flight=4) as (judge, server):
        with pytest.raises(UserError, match=r"64 questions in a row failed, .* status 503: gone"):
            run(judge, many(200), tmp_path / "j.jsonl", allow_missing=True)

        assert len(server.requests) <= 40 + 64 + 4
    assert sum(each.is_ok for each in read_judgments(tmp_path / "j.jsonl")[1]) == 40


def test_replies_that_arrive_out_of_order_go_with_their_questions(tmp_path):
    def script(body):
        text = body["messages"][0]["content"]
        number = int(text.split("Question ")[1].split("?")[0])
        # Later questions are answered sooner, and each with a probability of its own.
        prob = (number + 1) / 100
        said = chat("A", {"A": prob, "B": 1 - prob})
        return Said(said.body, seconds=0.002 * (40 - number))

    with chat_judge(script, num_in_flight=32) as (judge, server):
        found = run(judge, many(40), tmp_path / "j.jsonl")

        assert server.most_at_once > 16
    for number, judgment in enumerate(found[::2]):
        assert judgment.reply.probs[0] == pytest.approx((number + 1) / 100)
    written = [each.prompt_id for each in read_judgments(tmp_path / "j.jsonl")[1]]
    assert written != [each.prompt_id for each in found]


def test_no_more_than_the_wanted_number_is_in_flight(tmp_path):
    with chat_judge(always(Said(GOOD.body, seconds=0.2)), num_in_flight=3) as (judge, server):
        run(judge, many(10), tmp_path / "j.jsonl")

        assert server.most_at_once == 3


def test_a_budget_stops_the_run_and_the_next_one_goes_on(tmp_path):
    with chat_judge(always(GOOD), max_calls=3) as (judge, server):
        with pytest.raises(UserError, match=r"max_calls = 3 questions, 5 are left. Run again"):
            run(judge, many(4), tmp_path / "j.jsonl")
        with pytest.raises(UserError, match="2 are left"):
            run(judge, many(4), tmp_path / "j.jsonl")
        found = run(judge, many(4), tmp_path / "j.jsonl")

        assert len(server.requests) == 8
    assert len(found) == 8


def test_the_file_of_another_judge_is_left_alone(tmp_path):
    with chat_judge(always(GOOD)) as (judge, _):
        run(judge, many(1), tmp_path / "j.jsonl")
    before = (tmp_path / "j.jsonl").read_bytes()

    with (
        chat_judge(always(GOOD), top_logprobs=5) as (judge, _),
        pytest.raises(UserError, match=r"judgments of another judge .*: its params is"),
    ):
        run(judge, many(1), tmp_path / "j.jsonl")
    assert (tmp_path / "j.jsonl").read_bytes() == before


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    for text in ("a letter\n", "a letter without an end", '{"schema": "prefopt/answers/1"}\n'):
        (tmp_path / "j.jsonl").write_text(text)
        with chat_judge(always(GOOD)) as (judge, _), pytest.raises(UserError):
            run(judge, many(1), tmp_path / "j.jsonl")
        assert (tmp_path / "j.jsonl").read_text() == text


def test_a_judge_is_not_asked_what_it_does_not_know(tmp_path):
    with judge_of(backend="rule", function="operator:eq", form="pair") as judge:
        question = ScoreQuestion(prompt=Prompt(turns=("x",)), answer=score().answer)
        with pytest.raises(UserError, match="cannot be asked for a score, only for pair"):
            run(judge, [], tmp_path / "j.jsonl", [(question, "a")])
    assert not (tmp_path / "j.jsonl").exists()
