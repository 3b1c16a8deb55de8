import pytest

from tests.support.judge_server import Said, always, in_turn, judge_of, pair, score, serving

A, B, TIE = "Answer A is better", "Answer B is better", "They are equally good"


def ask(backend, answers, question=None, **section):
    body = {"model": "m", "answers": answers, "usage": {"input_tokens": 7}}
    with serving(always(Said(body))) as server:
        settings = {"backend": backend, "model": "m", "base_url": server.url, "max_retries": 0}
        with judge_of(**settings, **section) as judge:
            return judge.ask(question or pair()), server.requests[0]


def choice(**probs):
    return {"type": "choice", "choice": A, "confidence": 0.1, "probabilities": probs}


def listed(key, probs):
    rows = [{key: name, "probability": prob} for name, prob in probs.items()]
    return [{"type": "choice", "choice": A, "confidence": 0.1, "probabilities": rows}]


def test_system_one_gives_the_probability_of_each_option_in_any_order():
    reply, request = ask("systemone", {"judgment": choice(**{B: 0.25, A: 0.75})})

    assert reply.probs == (0.75, 0.25, 0.0)
    assert reply.label_mass is None
    assert reply.usage == {"input_tokens": 7}
    assert request["path"] == "/v1/systemone"
    body = request["body"]
    assert body.keys() == {"model", "state", "questions"}
    question = body["questions"]["judgment"]
    assert question["type"] == "choice"
    assert question["criteria"] == {A: None, B: None}
    assert "[Answer A]\nyes\n" in body["state"]


def test_system_one_scores_are_by_place():
    probs = {str(place): 0.0 for place in range(10)} | {"9": 0.5, "0": 0.5}
    answer = {"type": "score", "score": 4.5, "probabilities": probs}
    reply, request = ask("systemone", {"judgment": answer}, score())

    assert reply.probs == (0.5, *[0.0] * 8, 0.5)
    levels = [str(level) for level in range(1, 11)]
    assert request["body"]["questions"]["judgment"]["criteria"] == levels


def test_decisions_gives_the_probability_of_each_choice_in_any_order():
    reply, request = ask("decisions", listed("value", {TIE: 0.5, B: 0.125, A: 0.375}), ties=True)

    assert reply.probs == (0.375, 0.125, 0.5)
    assert request["path"] == "/v1/decisions"
    body = request["body"]
    assert body.keys() == {"model", "input", "questions"}
    [question] = body["questions"]
    assert question["choices"] == [{"value": A}, {"value": B}, {"value": TIE}]
    assert question.keys() == {"type", "name", "instructions", "choices"}


def test_decisions_scores_are_by_label():
    rows = [
        {"label": "3", "value": 2, "probability": 0.25},
        {"label": "1", "value": 0, "probability": 0.75},
        {"label": "2", "value": 1, "probability": 0.0},
    ]
    answer = [{"type": "score", "score": 0.5, "confidence": 0.5, "probabilities": rows}]
    reply, request = ask("decisions", answer, score(), levels=[1, 2, 3])

    assert reply.probs == (0.75, 0.0, 0.25)
    labels = [{"label": "1"}, {"label": "2"}, {"label": "3"}]
    assert request["body"]["questions"][0]["levels"] == labels


@pytest.mark.parametrize("backend", ["decisions", "systemone"])
def test_a_refusal_is_no_tie(backend):
    refusal = {"type": "refusal", "name": "judgment"}
    reply, _ = ask(backend, [refusal] if backend == "decisions" else {"judgment": refusal})

    assert (reply.status, reply.probs) == ("refusal", ())


@pytest.mark.parametrize(
    "answers",
    [
        None,
        [],
        {},
        {"other": choice(**{A: 1.0, B: 0.0})},
        {"judgment": {"type": "choice"}},
        {"judgment": choice(**{A: 1.0})},
        {"judgment": choice(**{A: 0.6, B: 0.6})},
        {"judgment": choice(**{A: "0.5", B: "0.5"})},
        {"judgment": choice(**{A: 1.5, B: -0.5})},
    ],
)
def test_other_answers_are_no_judgments(answers):
    reply, _ = ask("systemone", answers)

    assert reply.status == "parse_error"


def test_a_failing_endpoint_leaves_a_missing_judgment():
    broken = Said({"error": {"message": "oh"}}, 500)
    with (
        serving(in_turn(broken)) as server,
        judge_of(backend="systemone", model="m", base_url=server.url, max_retries=0) as judge,
    ):
        reply = judge.ask(pair())

    assert (reply.status, reply.problem) == ("api_error", "status 500: oh")
