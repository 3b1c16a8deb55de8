import logging
import time

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.judge.base import JudgeUnusable
from prefopt.evaluation.judge.runner import run_judge
from tests.support.judge_server import (
    Said,
    always,
    chat,
    chat_judge,
    error,
    in_turn,
    judge_of,
    pair,
)

KEY = "sk-do-not-tell-anyone-0123456789"
GOOD = chat("A", {"A": 0.75, "B": 0.25})
# So that the package does not wait half a second.
AT_ONCE = {"Retry-After-Ms": "1"}


def test_a_busy_server_is_asked_again_when_it_says():
    script = in_turn(error(429, "slow down", **{"Retry-After": "1"}), GOOD)
    start = time.monotonic()
    with chat_judge(script, max_retries=1) as (judge, server):
        reply = judge.ask(pair())

    assert (reply.status, reply.num_attempts, len(server.requests)) == ("ok", 2, 2)
    assert time.monotonic() - start > 1.0


def test_a_server_that_fails_twice_is_asked_three_times():
    broken = error(500, "oh", **AT_ONCE)
    with chat_judge(in_turn(broken, broken, GOOD), max_retries=2) as (judge, server):
        reply = judge.ask(pair())

    assert reply.probs == pytest.approx((0.75, 0.25, 0.0))
    assert (reply.num_attempts, len(server.requests)) == (3, 3)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_server_that_goes_on_failing_leaves_a_missing_judgment(status):
    with chat_judge(always(error(status, "no luck", **AT_ONCE)), max_retries=1) as (judge, server):
        reply = judge.ask(pair())

    assert (reply.status, reply.num_attempts) == ("api_error", 2)
    assert reply.problem == f"status {status}: no luck"
    assert len(server.requests) == 2


def test_a_slow_server_is_given_up():
    with chat_judge(always(Said(GOOD.body, seconds=0.5)), timeout=0.1) as (judge, _):
        reply = judge.ask(pair())

    assert (reply.status, reply.problem) == ("api_error", "no reply within 0.1 seconds")


def test_a_lost_connection_is_tried_again():
    with chat_judge(in_turn(Said(resets=True), GOOD), max_retries=1) as (judge, _):
        assert judge.ask(pair()).num_attempts == 2


def test_a_reply_that_is_no_json_is_an_error_of_the_api():
    with chat_judge(always(Said(text="<html>busy</html>"))) as (judge, _):
        reply = judge.ask(pair())

    assert reply.status == "api_error"
    assert reply.problem == "the reply is no JSON: '<html>busy</html>'"


def unusable(script, **section):
    with chat_judge(script, **section) as (judge, server):
        with pytest.raises(JudgeUnusable) as caught:
            judge.ask(pair())
        assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_key_is_said_with_the_variable_and_without_the_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)

    line = unusable(always(error(401, f"Incorrect API key: {KEY}.")), api_key_env="MY_KEY")

    assert "status 401: Incorrect API key: ***." in line
    assert "environment variable MY_KEY" in line


def test_a_wrong_model_is_said():
    assert "Is judge.model 'm' right" in unusable(always(error(404, "no such model")))


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ("Unsupported parameter: 'max_tokens'", "token_limit_key: max_completion_tokens"),
        ("temperature does not support 0", "judge.temperature: omit"),
        ("top_logprobs must be at most 5: logprobs", "Lower judge.top_logprobs"),
        ("what is this?", "Change the judge's section."),
    ],
)
def test_a_bad_request_names_the_way_out(said, way_out):
    assert way_out in unusable(always(error(400, said)))


def test_a_question_that_is_too_long_is_one_missing_judgment():
    said = error(400, "This model's maximum context length is 4096 tokens.")
    with chat_judge(always(said)) as (judge, _):
        assert judge.ask(pair()).status == "api_error"


def test_an_unreachable_server_is_one_line():
    section = {"backend": "openai_chat", "model": "m", "max_retries": 0}
    with (
        judge_of(**section, base_url="http://user:secret@127.0.0.1:9/v1") as judge,
        pytest.raises(JudgeUnusable) as caught,
    ):
        judge.ask(pair())

    line = str(caught.value)
    assert line.startswith("judge: cannot reach http://127.0.0.1:9/v1: ")
    assert "secret" not in line
    assert "\n" not in line


def test_the_key_is_sent_and_appears_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echoing = in_turn(
        error(500, f"bad key {KEY}", **AT_ONCE),
        chat(f"Your key is {KEY}", {"A": 1.0}),
        Said(text=f"{KEY} <- yours"),
    )
    with chat_judge(echoing, api_key_env="MY_KEY", max_retries=1) as (judge, server):
        replies = [judge.ask(pair())]
        replies += [judge.ask(pair("x", "y"))]
        server.script = always(error(500, f"worse key {KEY}", **AT_ONCE))
        replies += [judge.ask(pair("x", "z"))]

        assert {each["headers"]["Authorization"] for each in server.requests} == {f"Bearer {KEY}"}
    assert [reply.status for reply in replies] == ["ok", "api_error", "api_error"]
    assert KEY not in f"{replies} {judge.identity} {judge.rendered(pair())} {caplog.text}"
    assert "***" in replies[0].raw


def test_the_key_is_in_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    echoing = in_turn(chat(KEY, {"A": 0.5, "B": 0.5}), error(400, f"{KEY} is no good"))
    with chat_judge(echoing, api_key_env="MY_KEY") as (judge, _):
        run_judge(judge, [(pair(), "a", "b")], [], tmp_path / "j.jsonl", allow_missing=True)

    [file] = tmp_path.iterdir()
    text = file.read_text()
    assert KEY not in text
    # In the reply of one question and in the problem of the other.
    assert text.count("***") == 2


def test_a_named_variable_that_is_not_set_is_said(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)

    with pytest.raises(UserError, match="environment variable MY_KEY is not set"):
        unusable(always(GOOD), api_key_env="MY_KEY")


def test_a_local_server_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    with chat_judge(always(GOOD)) as (judge, _):
        assert judge.ask(pair()).status == "ok"
    with (
        pytest.raises(UserError, match="OPENAI_API_KEY is not set"),
        judge_of(backend="openai_chat", model="m"),
    ):
        pass
