import json
from itertools import combinations, permutations

import numpy as np
import pytest

from prefopt.errors import UserError
from prefopt.evaluation.analysis import judge_numbers
from tests.support.judged import (
    against,
    answer,
    both_orders,
    noisy,
    numbers,
    one_each,
    pair,
    prompts_of,
)
from tests.support.shared import SHARED, needs_data


def test_a_against_itself_is_exactly_one_half():
    prompts = prompts_of(30)
    judgments = both_orders(list(prompts), [("base", "same")], lambda *_: 0.5)

    report = numbers(judgments, one_each("base", "same"), num_prompts=30)

    row = against(report, "same")
    assert row["win"] == {
        "value": 0.5,
        "low": 0.5,
        "high": 0.5,
        "n": 30,
        "unit": "prompts, one seed",
    }
    assert row["p"] == row["p_holm"] == 1.0
    assert row["outcome"] == "no difference seen"
    assert row["length_controlled"]["value"] == pytest.approx(0.5, abs=1e-12)


def test_a_judge_of_slots_gives_exactly_one_half_after_both_orders():
    prompts = prompts_of(40)
    judgments = both_orders(
        list(prompts), [("base", "a"), ("base", "b"), ("a", "b")], lambda *_: 1.0
    )

    report = numbers(judgments, one_each("base", "a", "b"))

    assert [row["win"]["value"] for row in report["win_matrix"]] == [0.5, 0.5, 0.5]
    assert {row["outcome"] for row in report["against_baseline"]} == {"no difference seen"}
    assert report["order"]["first_slot_rate"]["value"] == 1.0
    assert report["order"]["consistent_share"]["value"] == 0.0
    assert report["strengths"] is None
    assert "length or slot decide every battle" in report["note"]


def test_a_slot_bias_beside_quality_is_told_and_taken_out():
    prompts = prompts_of(200)
    plain = noisy(np.random.default_rng(1), {"a": 0.6})
    biased = noisy(np.random.default_rng(1), {"a": 0.6}, slot=0.8)

    fair, unfair = (
        numbers(
            both_orders(list(prompts), [("base", "a")], judge),
            one_each("base", "a"),
            num_prompts=200,
        )
        for judge in (plain, biased)
    )

    assert fair["slot_effect"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert unfair["slot_effect"]["low"] > 0.5
    assert unfair["order"]["first_slot_rate"]["low"] > 0.6
    assert against(unfair, "a")["win"]["value"] == pytest.approx(
        against(fair, "a")["win"]["value"], abs=0.02
    )


def test_wins_are_means_over_orders_then_prompts_with_ties_half():
    first, second = list(prompts_of(2))
    judgments = [
        pair(first, "a", "base", (0.6, 0.2, 0.2)),
        pair(first, "base", "a", (0.5, 0.5, 0.0)),
        pair(second, "a", "base", (0.0, 0.0, 1.0)),
        pair(second, "base", "a", (0.9, 0.1, 0.0)),
    ]

    report = numbers(judgments, one_each("base", "a"), num_prompts=2)

    # (0.7 + 0.5) / 2 = 0.6 and (0.5 + 0.1) / 2 = 0.3.
    assert against(report, "a")["win"]["value"] == pytest.approx(0.45)
    [cell] = report["win_matrix"]
    assert (cell["a"], cell["b"]) == ("base", "a")
    assert cell["win"]["value"] == pytest.approx(0.55)


def test_turns_and_samples_of_a_prompt_are_one_value():
    first, second = list(prompts_of(2))
    judgments = [
        *both_orders([first], [("a", "base")], lambda _, one, two: one == "a", sample=0),
        *both_orders([first], [("a", "base")], lambda _, one, two: one == "a", sample=1),
        *both_orders([first], [("a", "base")], lambda _, one, two: one != "a", sample=2),
        *both_orders([second], [("a", "base")], lambda _, one, two: one != "a"),
    ]
    answers = {
        system: [answer(p, sample=s) for p in (first, second) for s in range(3)]
        for system in ("a", "base")
    }

    report = judge_numbers(
        "J", {}, judgments, answers, one_each("base", "a"), "base", prompts_of(2)
    )

    # 2/3 on one prompt, 0 on the other.
    assert against(report, "a")["win"]["value"] == pytest.approx(1 / 3)
    assert against(report, "a")["win"]["n"] == 2


def test_one_order_alone_is_missing_and_no_status_is_a_tie():
    one, two, three, four = list(prompts_of(4))
    judgments = [
        *both_orders(
            [one, four], [("a", "base")], lambda _, first, second: 0.9 if first == "a" else 0.2
        ),
        pair(two, "a", "base", 1.0),
        pair(two, "base", "a", 0.5, status="refusal"),
        pair(three, "a", "base", 0.5, status="parse_error"),
    ]

    report = numbers(judgments, one_each("base", "a"), num_prompts=4)

    row = against(report, "a")
    assert row["win"]["value"] == pytest.approx(0.85)
    assert row["win"]["n"] == 2
    # Four prompts were asked about; two of them lost, or won.
    assert row["win_if_missing_lost"] == pytest.approx(1.7 / 4)
    assert row["win_if_missing_won"] == pytest.approx(3.7 / 4)
    assert report["coverage"] == {
        "num_asked": 7,
        "num_ok": 5,
        "share": 5 / 7,
        "by_status": {"ok": 5, "refusal": 1, "parse_error": 1},
    }
    assert report["order"]["first_slot_rate"]["n"] == 2


def test_what_was_asked_again_counts_once():
    [prompt] = list(prompts_of(1))
    judgments = [
        pair(prompt, "a", "base", 0.5, status="api_error"),
        pair(prompt, "base", "a", 0.0),
        pair(prompt, "a", "base", 1.0),
    ]

    report = numbers(judgments, one_each("base", "a"), num_prompts=1)

    assert report["coverage"]["num_asked"] == 2
    assert report["coverage"]["share"] == 1.0
    assert against(report, "a")["win"] == {
        "value": 1.0,
        "low": None,
        "high": None,
        "n": 1,
        "unit": "prompts, one seed",
    }


def test_other_systems_and_prompts_are_left_aside():
    prompts = list(prompts_of(3))
    judgments = both_orders(prompts, [("a", "base"), ("tuned", "base")], lambda *_: 0.5)
    judgments += both_orders(["unknown"], [("a", "base")], lambda *_: 1.0)

    report = numbers(judgments, one_each("base", "a"), num_prompts=3)

    assert report["coverage"]["num_asked"] == 6
    assert len(report["win_matrix"]) == 1


def test_a_judge_of_length_moves_the_raw_rate_and_not_the_controlled_one():
    rng = np.random.default_rng(8)
    prompts = list(prompts_of(400))
    lengths = {}
    for prompt in prompts:
        lengths["base", prompt] = int(rng.integers(500, 1500))
        lengths["wordy", prompt] = int(rng.integers(700, 1700))
        lengths["better", prompt] = int(rng.integers(300, 1300))
    judge = noisy(rng, {"better": 0.6}, noise=0.3, lengths=lengths, by_length=1.5)
    names = ["base", "wordy", "better"]

    report = numbers(
        both_orders(prompts, list(combinations(names, 2)), judge),
        one_each(*names),
        num_prompts=400,
        lengths=lengths,
    )

    wordy, better = against(report, "wordy"), against(report, "better")
    assert wordy["outcome"] == "better"
    assert wordy["win"]["low"] > 0.53
    # Its standard error is 0.006.
    assert wordy["length_controlled"]["value"] == pytest.approx(0.5, abs=0.02)
    assert better["win"]["value"] < 0.58
    assert better["length_controlled"]["low"] > 0.6
    assert report["length_effect"]["low"] > 1
    strengths = {row["method"]: row for row in report["strengths"]}
    assert strengths["better"]["rank"] == strengths["better"]["rank_high"] == 1
    assert strengths["wordy"]["logit"]["value"] == pytest.approx(0.0, abs=0.08)


def test_nothing_judged_is_no_number():
    report = numbers([], one_each("base", "a"))

    assert report["coverage"] == {"num_asked": 0, "num_ok": 0, "share": 0.0, "by_status": {}}
    assert report["win_matrix"] == report["against_baseline"] == []
    assert report["scores"] is report["intransitive_share"] is report["note"] is None


def test_a_judged_answer_that_is_not_there_is_named():
    prompts = prompts_of(1)
    judgments = both_orders(list(prompts), [("a", "base")], lambda *_: 0.5)

    with pytest.raises(UserError, match="turn 1 of an answer of base to prompt"):
        judge_numbers("J", {}, judgments, {}, one_each("base", "a"), "base", prompts)


@pytest.mark.slow
def test_the_order_of_lines_does_not_matter():
    rng = np.random.default_rng(7)
    judgments = both_orders(
        list(prompts_of(20)), list(permutations(["base", "a", "b"], 2))[:3], noisy(rng, {"a": 0.5})
    )
    shuffled = [judgments[index] for index in rng.permutation(len(judgments))]

    methods = one_each("base", "a", "b")
    first, second = (numbers(each, methods, num_prompts=20) for each in (judgments, shuffled))

    assert first["win_matrix"] == second["win_matrix"]


FUSECHAT = SHARED / "alpaca_eval" / "FuseChat-Llama-3.2-1B-Instruct" / "annotations_slim.json"


@needs_data
def test_the_published_win_rate_is_reproduced():
    annotations = json.loads(FUSECHAT.read_text(encoding="utf-8"))
    prompts = prompts_of(len(annotations))
    # AlpacaEval asks once, in an order drawn by instruction, and turns the answer around itself:
    # its preference stands for both orders.
    judgments, lengths = [], {}
    for prompt, row in zip(prompts, annotations, strict=True):
        win = row["preference"] - 1
        judgments += [
            pair(prompt, "FuseChat", "base", win),
            pair(prompt, "base", "FuseChat", 1 - win),
        ]
        lengths["base", prompt], lengths["FuseChat", prompt] = row["len_1"], row["len_2"]

    report = numbers(judgments, one_each("base", "FuseChat"), prompts=prompts, lengths=lengths)

    row = against(report, "FuseChat")
    assert row["win"]["value"] * 100 == pytest.approx(29.9219322658882, abs=1e-6)
    assert row["win"]["n"] == 805
    assert row["outcome"] == "worse"
    # Published with the difficulty of instructions and a penalty: 25.3.
    assert row["length_controlled"]["value"] * 100 == pytest.approx(25.3, abs=4)
