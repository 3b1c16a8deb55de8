import math

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.types import PairQuestion, Prompt, ScoreQuestion
from tests.support.judge_server import answer, judge_of, pair, score

GOLD = "prefopt.demo.task:gold_score"


@pytest.fixture
def rules(tmp_path):
    """A file with rules of its own."""
    file = tmp_path / "rules.py"
    file.write_text(
        "def length(prompt, answer):\n"
        "    return len(answer)\n"
        "def flat(prompt, answer):\n"
        "    return 0.0\n"
        "def likes_a(prompt, first, second):\n"
        "    return 0.75 if first.startswith('a') else 0.25\n"
        "def broken(prompt, answer):\n"
        "    return 'much'\n"
    )
    return lambda name: f"{file}:{name}"


def ask(function, question, **section):
    with judge_of(backend="rule", function=function, **section) as judge:
        return judge.ask(question)


def test_the_higher_score_wins_and_equal_ones_tie(rules):
    assert ask(rules("length"), pair("long", "no")).probs == (1.0, 0.0, 0.0)
    assert ask(rules("length"), pair("no", "long")).probs == (0.0, 1.0, 0.0)
    assert ask(rules("length"), pair("no", "ok")).probs == (0.0, 0.0, 1.0)


def test_a_temperature_turns_the_difference_into_a_probability(rules):
    reply = ask(rules("length"), pair("long", "no"), temperature=4.0)

    # Two characters more, over 4.
    assert reply.probs == pytest.approx((1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5)), 0))


def test_the_gold_score_of_the_embedded_task_is_a_rule():
    assert ask(GOLD, pair("aeoktz", "aekotz", "kteaoz:")).probs == (1.0, 0.0, 0.0)


def test_the_turn_that_is_judged_is_what_the_rule_sees(rules):
    prompt = Prompt(turns=("One?", "Two?"))
    first, second = answer(prompt, "long one", "x"), answer(prompt, "o", "longer")
    question = PairQuestion(prompt=prompt, first=first, second=second, turn=2)

    assert ask(rules("length"), question).probs == (0.0, 1.0, 0.0)
    turn_1 = ScoreQuestion(prompt=prompt, answer=second)
    assert ask(rules("length"), turn_1).probs[0] == 1.0


def test_a_score_keeps_its_value_as_mean_over_the_levels():
    # Three of six letters in place: 0.5 between the levels 0 and 1.
    reply = ask(GOLD, score("aeozzz", "kteaoz:"), levels=[0, 1])
    assert reply.status == "ok"
    assert sum(p * level for p, level in zip(reply.probs, (0, 1), strict=True)) == pytest.approx(
        float(reply.raw), abs=1e-5
    )


def test_a_score_outside_the_levels_is_missing(rules):
    assert ask(rules("length"), score("x" * 11)).status == "parse_error"


def test_a_rule_may_speak_of_the_pair(rules):
    assert ask(rules("likes_a"), pair("ab", "b"), form="pair").probs == pytest.approx(
        (0.75, 0.25, 0)
    )


def test_a_slot_bias_is_in_logits_and_cancels_over_both_orders(rules):
    section = {"temperature": 1.0, "slot_bias": 2.0}
    one = ask(rules("flat"), pair("a", "b"), **section)
    other = ask(rules("flat"), pair("b", "a"), **section)

    assert one.probs[0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert (one.probs[0] + other.probs[1]) / 2 == 0.5


def test_a_length_bias_favours_the_longer_and_saturates(rules):
    section = {"temperature": 1.0, "length_bias": 3.0, "length_scale": 10.0}

    reply = ask(rules("flat"), pair("x" * 15, "x" * 10), **section)
    assert reply.probs[0] == pytest.approx(1 / (1 + math.exp(-3 * math.tanh(0.5))))
    reply = ask(rules("flat"), pair("x" * 10_000, "x"), **section)
    assert reply.probs[0] == pytest.approx(1 / (1 + math.exp(-3)))


def test_noise_is_the_same_for_the_same_question_and_of_the_size_asked_for(rules):
    section = {"temperature": 1.0, "noise": 0.5}
    with judge_of(backend="rule", function=rules("flat"), **section) as judge:
        replies = [judge.ask(pair(f"{n}", "b")) for n in range(500)]
        again = [judge.ask(pair(f"{n}", "b")) for n in range(500)]

    assert replies == again
    logits = [math.log(reply.probs[0] / reply.probs[1]) for reply in replies]
    mean = sum(logits) / 500
    # Four standard errors: 0.5 / sqrt(500) = 0.022 of the mean, 0.5 / sqrt(1000) = 0.016 of the
    # spread.
    assert abs(mean) < 0.09
    assert math.sqrt(sum((x - mean) ** 2 for x in logits) / 500) == pytest.approx(0.5, abs=0.064)


def test_dropped_questions_are_refusals_at_the_rate_asked_for(rules):
    with judge_of(backend="rule", function=rules("flat"), drop_rate=0.3) as judge:
        replies = [judge.ask(pair(f"{n}", "b")) for n in range(1000)]

    # Four standard errors: 4 * sqrt(0.3 * 0.7 / 1000) = 0.058.
    assert abs(sum(reply.status == "refusal" for reply in replies) / 1000 - 0.3) < 0.058


def test_the_identity_knows_the_code_of_the_rule(rules, tmp_path):
    with judge_of(backend="rule", function=rules("flat")) as judge:
        before = judge.identity
    with (tmp_path / "rules.py").open("a") as file:
        file.write("# changed\n")
    with judge_of(backend="rule", function=rules("flat")) as judge:
        assert judge.identity["source_sha"] != before["source_sha"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("length", "is no entry point"),
        ("no_such_module:f", "no module no_such_module"),
        ("absent.py:f", "no file absent.py"),
        ("prefopt.demo.task:gold_scor", "Did you mean 'gold_score'"),
    ],
)
def test_a_function_that_is_not_there_is_said(function, message):
    with pytest.raises(UserError, match=message):
        ask(function, pair())


def test_a_rule_that_gives_no_number_is_said(rules):
    with pytest.raises(UserError, match=r"gave 'much'\. It must give a number"):
        ask(rules("broken"), pair())


def test_a_rule_that_fails_is_said(rules):
    with pytest.raises(UserError, match=r"length failed: TypeError: length.* takes 2"):
        ask(rules("length"), pair(), form="pair")
