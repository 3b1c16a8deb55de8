import logging

import pytest

from prefopt.errors import UserError
from tests.support.judge_server import (
    Said,
    always,
    chat,
    chat_judge,
    error,
    in_turn,
    pair,
    score,
)


def ask(script, question=None, **section):
    with chat_judge(script, **section) as (judge, server):
        return judge.ask(question or pair()), server


def test_probabilities_come_from_the_log_probs_of_the_labels():
    reply, _ = ask(always(chat("A", {"A": 0.5, " A": 0.1, "B": 0.15, "Well": 0.2})))

    # 0.6 against 0.15.
    assert reply.status == "ok"
    assert reply.probs == pytest.approx((0.8, 0.2, 0.0))
    assert reply.label_mass == pytest.approx(0.75)
    assert reply.raw == "A"
    assert reply.usage == {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}


def test_the_request_is_exactly_this():
    with chat_judge(always(chat("A", {"A": 1.0})), extra_body={"seed": 5}) as (judge, server):
        judge.ask(pair())

        [request] = server.requests
        assert request["path"] == "/v1/chat/completions"
        [message] = request["body"].pop("messages")
        assert request["body"] == {
            "model": "m",
            "max_tokens": 1,
            "temperature": 1.0,
            "logprobs": True,
            "top_logprobs": 20,
            "seed": 5,
        }
    assert message["role"] == "user"
    assert message["content"].startswith("[Request]\nSay yes.\n[End of request]\n\n[Answer A]\nyes")


def test_newer_models_get_the_limit_under_its_other_name_and_no_temperature():
    _, server = ask(
        always(chat("[[A]]")),
        mode="text",
        token_limit_key="max_completion_tokens",
        temperature="omit",
    )

    assert server.bodies[0].keys() == {"model", "messages", "max_completion_tokens"}
    assert server.bodies[0]["max_completion_tokens"] == 2048


def test_a_label_for_ties_is_read_as_a_tie():
    reply, _ = ask(always(chat("C", {"A": 0.1, "B": 0.3, "C": 0.6})), labels=["A", "B", "C"])

    assert reply.probs == pytest.approx((0.1, 0.3, 0.6))


def test_a_score_is_a_distribution_over_the_levels():
    reply, _ = ask(always(chat("J", {"J": 0.6, "I": 0.2})), score())

    # Ten levels, by the letters A to J.
    assert reply.probs == pytest.approx((0,) * 8 + (0.25, 0.75))


def test_two_levels_are_two_probabilities():
    reply, _ = ask(always(chat("1", {"1": 0.5, "0": 0.5})), score(), levels=[0, 1])

    assert reply.probs == pytest.approx((0.5, 0.5))


def test_tokens_around_the_label_do_not_hide_it():
    tokens = [("\n", {"\n": 1.0}), ("B", {"A": 0.25, "B": 0.75}), (".", {".": 1.0})]
    reply, _ = ask(always(chat("\nB.", tokens=tokens)), max_tokens=3)

    assert reply.probs == pytest.approx((0.25, 0.75, 0.0))


def test_no_label_among_the_likeliest_tokens_is_no_judgment():
    reply, _ = ask(always(chat("Both", {"Both": 0.9, "Hm": 0.1})))

    assert reply.status == "parse_error"
    assert reply.probs == ()
    assert reply.label_mass == 0.0


@pytest.mark.parametrize("missing", ["absent", "null", "no content", "no top"])
def test_missing_log_probs_are_a_status_and_no_tie(missing):
    said = chat("A", {"A": 0.5, "B": 0.5})
    choice = said.body["choices"][0]
    if missing == "absent":
        del choice["logprobs"]
    elif missing == "null":
        choice["logprobs"] = None
    elif missing == "no content":
        choice["logprobs"] = {"content": None}
    else:
        choice["logprobs"]["content"][0]["top_logprobs"] = []

    reply, _ = ask(always(said))

    assert reply.status == "no_logprobs"
    assert reply.probs == ()


@pytest.mark.parametrize("top", [["A"], [{"token": "A"}], [{"token": "A", "logprob": None}], 3])
def test_log_probs_of_another_form_are_no_judgment(top):
    said = chat("A", {"A": 0.5, "B": 0.5})
    said.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = top

    assert ask(always(said))[0].status == "parse_error"


def test_a_label_that_is_all_but_impossible_is_absent():
    # What servers write for a probability of 0.
    said = chat("x", {"x": 1.0})
    said.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] += [
        {"token": "A", "logprob": -9999.0}
    ]

    assert ask(always(said))[0].status == "parse_error"


def test_mode_auto_falls_back_to_text_and_says_so(caplog):
    with chat_judge(always(chat("Well. [[B]]")), mode="auto", num_samples=2) as (judge, server):
        with caplog.at_level(logging.WARNING):
            first = judge.ask(pair())
        second = judge.ask(pair("a", "b"))

        # One attempt by log-probs, then two samples for each question.
        assert ["logprobs" in body for body in server.bodies] == [True] + [False] * 4
    assert first.probs == second.probs == (0.0, 1.0, 0.0)
    assert first.raw == "Well. [[B]]\n---\nWell. [[B]]"
    assert "gives no log-probs" in caplog.text
    assert judge.identity["mode"] == "auto"
    assert judge.identity["prompts"].keys() == {"logprobs", "text"}


def test_mode_auto_falls_back_where_log_probs_are_refused():
    def script(body):
        return error(400, "logprobs are not supported") if "logprobs" in body else chat("[[A]]")

    reply, _ = ask(script, mode="auto")

    assert reply.probs == (1.0, 0.0, 0.0)


def test_mode_auto_stays_with_log_probs_once_they_came():
    with chat_judge(in_turn(chat("A", {"A": 1.0}), chat("A")), mode="auto") as (judge, _):
        assert judge.ask(pair()).status == "ok"
        assert judge.ask(pair("x", "y")).status == "no_logprobs"


def test_text_gives_the_shares_of_the_verdicts_that_can_be_read():
    replies = [chat(f"So [[{each}]]") for each in "AAB"] + [chat("I cannot say.")]
    reply, server = ask(in_turn(*replies), mode="text", num_samples=4)

    assert reply.probs == pytest.approx((2 / 3, 1 / 3, 0.0))
    assert reply.num_attempts == 4
    assert reply.usage["prompt_tokens"] == 44
    assert server.bodies[0]["temperature"] == 1.0


def test_a_single_text_is_taken_at_temperature_0():
    _, server = ask(always(chat("[[A]]")), mode="text")

    assert server.bodies[0]["temperature"] == 0.0


def test_the_last_verdict_of_a_text_counts():
    reply, _ = ask(always(chat("[[B]] was my first thought. Now I say [[A]]")), mode="text")

    assert reply.probs == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("text", ["Rating: [[11]]", "Rating: [[0]]", "Good, see [1].", "8"])
def test_a_rating_that_is_out_of_range_or_none_is_no_score(text):
    reply, _ = ask(always(chat(text)), score(), mode="text")

    assert reply.status == "parse_error"


def test_ratings_of_several_texts_are_a_distribution():
    reply, _ = ask(in_turn(chat("[[7]]"), chat("[[7.5]]")), score(), mode="text", num_samples=2)

    # The one on 7, the other half on 7 and half on 8.
    assert reply.probs == pytest.approx((0, 0, 0, 0, 0, 0, 0.75, 0.25, 0, 0))


@pytest.mark.parametrize("mode", ["logprobs", "text"])
@pytest.mark.parametrize(
    "said",
    [
        chat(None, refusal="I will not compare these."),
        chat("[[A]]", {"A": 1.0}, finish_reason="content_filter"),
    ],
)
def test_a_refusal_is_no_tie(said, mode):
    reply, _ = ask(always(said), mode=mode)

    assert reply.status == "refusal"
    assert reply.probs == ()


def test_an_empty_reply_is_no_judgment():
    assert ask(always(chat("")), mode="text")[0].status == "parse_error"
    assert ask(always(chat(None)), mode="text")[0].status == "parse_error"
    reply, _ = ask(always(chat("", tokens=[])))
    assert (reply.status, reply.problem) == ("parse_error", "the reply is empty")


def test_a_reply_that_is_cut_before_its_verdict_says_so():
    reply, _ = ask(always(chat("Let me think", finish_reason="length")), mode="text")

    assert reply.problem == "cut before its verdict; raise judge.max_tokens"


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [None]}, []])
def test_garbage_instead_of_a_completion_is_an_error_of_the_api(body):
    reply, _ = ask(always(Said(body)))

    assert reply.status == "api_error"


def test_after_a_reason_the_log_probs_of_the_verdict_are_read(tmp_path):
    rows = [
        f'{{"name": "{form}{turns}", "system_prompt": "S", "prompt_template": "{{question}}"}}\n'
        for form in ("pair-v2", "pair-math-v1", "single-v1", "single-math-v1")
        for turns in ("", "-multi-turn")
    ]
    file = tmp_path / "judge_prompts.jsonl"
    file.write_text("".join(rows))
    tokens = [
        ("A", {"A": 0.9, "B": 0.1}),
        (" is worse: [[", {"x": 1.0}),
        ("B", {"A": 0.2, "B": 0.6, "C": 0.2}),
        ("]]", {"x": 1.0}),
    ]

    reply, server = ask(always(chat("A is worse: [[B]]", tokens=tokens)), templates=str(file))

    assert reply.probs == pytest.approx((0.2, 0.6, 0.2))
    assert server.bodies[0]["max_tokens"] == 2048
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "S"}


def test_a_temperature_that_changes_the_probabilities_is_refused():
    with pytest.raises(UserError, match=r"judge\.temperature must be 1"):
        ask(always(chat("A")), temperature=0.0)


def test_several_samples_at_temperature_0_are_refused():
    with pytest.raises(UserError, match="all samples are the same"):
        ask(always(chat("A")), mode="text", temperature=0.0, num_samples=3)
