import json
import os
import signal
import time

import pytest

from prefopt.errors import UserError, check_section
from prefopt.evaluation.generate.answers import read_answers
from prefopt.evaluation.generate.endpoint import EndpointBackend
from prefopt.evaluation.generate.endpoint_section import EndpointSection
from prefopt.evaluation.generate.run import generate, outcome_of
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Prompt
from tests.evaluation.generate.stub import failed, said, serving, slowly

PROMPTS = [Prompt(turns=(f"question {i}",)) for i in range(40)]
SECTION = GenerationSection(max_new_tokens=9)


def echo(body, number):
    return said(f"re: {body['messages'][-1]['content']}")


def run(stub, path, prompts=PROMPTS, section=SECTION, **endpoint):
    there = EndpointSection(**{"url": stub.url, "num_in_flight": 8, **endpoint})
    backend = EndpointBackend("m", there, section)
    try:
        return generate(backend, prompts, section, path, system="served")
    finally:
        backend.close()


def test_a_request_says_all_that_was_asked_for(tmp_path):
    section = GenerationSection(
        max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=7, stop=("\n",), system="Be brief."
    )
    with serving(echo) as stub:
        run(stub, tmp_path / "a.jsonl", PROMPTS[:1], section, extra_body={"x": 1})
    [body] = stub.requests
    seed = body.pop("seed")

    assert body == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "question 0"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "stop": ["\n"],
        "max_tokens": 9,
        "x": 1,
    }
    line = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert line["seed"] == seed
    assert 0 <= seed < 2**31


def test_the_second_turn_sees_the_first_answer(tmp_path):
    prompt = Prompt(turns=("one", "two"), context=({"role": "system", "content": "s"},))
    with serving(echo) as stub:
        [answer] = run(stub, tmp_path / "a.jsonl", [prompt])

    assert answer.turns == ("re: one", "re: two")
    assert answer.num_tokens == (2, 2)
    assert [each["content"] for each in stub.requests[1]["messages"]] == [
        "s",
        "one",
        "re: one",
        "two",
    ]
    assert stub.requests[0]["seed"] != stub.requests[1]["seed"]


def test_samples_have_seeds_of_their_own(tmp_path):
    section = GenerationSection(temperature=1.0, num_samples=3)
    with serving(echo) as stub:
        found = run(stub, tmp_path / "a.jsonl", PROMPTS[:2], section)

    assert len({body["seed"] for body in stub.requests}) == 6
    assert {each.sample for each in found} == {0, 1, 2}


def test_as_many_requests_are_in_flight_as_allowed(tmp_path):
    with serving(slowly(echo, 0.02)) as stub:
        found = run(stub, tmp_path / "a.jsonl")

    assert len(found) == 40
    assert 2 <= stub.most_at_once <= 8


def test_cut_and_empty_answers_are_counted(tmp_path):
    def answer(body, number):
        if number % 4 == 0:
            return said("cut", finish_reason="length", num_tokens=9)
        return said(None, finish_reason="content_filter") if number % 4 == 1 else said("fine")

    with serving(answer) as stub:
        outcome = outcome_of(run(stub, tmp_path / "a.jsonl", num_in_flight=1))

    assert (outcome.share_cut, outcome.share_empty) == (0.25, 0.25)
    assert outcome.mean_tokens == (9 + 2 + 2 + 2) / 4


def test_busy_and_broken_servers_are_asked_again(tmp_path):
    def answer(body, number):
        return failed((429, 500, 503)[number], "later") if number < 3 else echo(body, number)

    with serving(answer) as stub:
        [found] = run(stub, tmp_path / "a.jsonl", PROMPTS[:1])

    assert found.turns == ("re: question 0",)
    assert len(stub.requests) == 4


def test_after_a_failure_only_what_is_missing_is_asked(tmp_path):
    path = tmp_path / "a.jsonl"

    def answer(body, number):
        return failed(400, "no more") if number == 20 else echo(body, number)

    with serving(answer) as stub, pytest.raises(UserError, match="no more"):
        run(stub, path)
    kept = read_answers(path)[1]
    # All that the server answered is kept, also what was in flight at the failure.
    assert len(kept) == len(stub.requests) - 1
    with serving(echo) as stub:
        found = run(stub, path)

    assert len(stub.requests) == 40 - len(kept)
    assert {each.prompt_id for each in found} == {each.prompt_id for each in PROMPTS}
    assert len(found) == 40


def test_after_ctrl_c_what_is_in_flight_is_kept(tmp_path, hears_ctrl_c):
    path = tmp_path / "a.jsonl"

    def answer(body, number):
        time.sleep(0.03)
        if number == 10:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.03)
        return echo(body, number)

    with serving(answer) as stub, pytest.raises(KeyboardInterrupt):
        run(stub, path, num_in_flight=4)
    kept = read_answers(path)[1]

    assert 10 < len(kept) == len(stub.requests) < 16
    with serving(echo) as stub:
        assert len(run(stub, path)) == 40
    assert len(stub.requests) == 40 - len(kept)


@pytest.mark.parametrize(
    ("status", "message", "way_out"),
    [
        (401, "bad key sk-secret-1", r"bad key \*\*\*\. .*endpoint\.api_key_env"),
        (404, "no model m", "no model m.*Check the model's name"),
        (400, "max_tokens is unknown", r"max_tokens is unknown.*endpoint\.token_limit_key"),
    ],
)
def test_a_refused_request_is_one_line(tmp_path, monkeypatch, status, message, way_out):
    monkeypatch.setenv("THE_KEY", "sk-secret-1")
    path = tmp_path / "a.jsonl"
    with (
        serving(lambda body, number: failed(status, message)) as stub,
        pytest.raises(UserError, match=way_out) as error,
    ):
        run(stub, path, PROMPTS[:1], api_key_env="THE_KEY")

    assert "\n" not in str(error.value)
    assert stub.headers[0]["authorization"] == "Bearer sk-secret-1"
    assert "sk-secret" not in str(error.value) + path.read_text(encoding="utf-8")
    assert error.value.__cause__ is None


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    with serving(echo) as stub:
        pass

    with pytest.raises(UserError, match="Check the URL and that the server runs"):
        run(stub, tmp_path / "a.jsonl", PROMPTS[:1], max_retries=0)


def test_a_slow_server_is_given_up(tmp_path):
    with (
        serving(slowly(echo, 0.5)) as stub,
        pytest.raises(UserError, match=r"Raise endpoint\.timeout"),
    ):
        run(stub, tmp_path / "a.jsonl", PROMPTS[:1], max_retries=0, timeout=0.05)


def test_a_reply_without_choices_is_one_line(tmp_path):
    def answer(body, number):
        status, value, headers = said("x")
        return status, value | {"choices": []}, headers

    with serving(answer) as stub, pytest.raises(UserError, match="holds no choice"):
        run(stub, tmp_path / "a.jsonl", PROMPTS[:1])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"url": "127.0.0.1:8000"}, "is no URL"),
        ({"url": "http://me:pw12@host/v1"}, "must hold no user or password"),
        ({"url": "http://h/v1", "api_key_env": "sk-abc"}, "must be the NAME"),
        ({"url": "http://h/v1", "num_in_flight": 0}, r"endpoint\.num_in_flight"),
        ({"url": "http://h/v1", "key": "x"}, r"endpoint\.key: unknown key"),
    ],
)
def test_a_wrong_section_is_one_line(values, problem):
    with pytest.raises(UserError, match=problem) as error:
        check_section(EndpointSection, values, "endpoint")

    assert "sk-abc" not in str(error.value)
    assert "pw12" not in str(error.value)


def test_a_key_that_is_not_set_is_one_line(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    there = EndpointSection(url="http://h/v1", api_key_env="NO_SUCH_KEY")

    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        EndpointBackend("m", there, SECTION)
