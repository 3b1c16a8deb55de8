from itertools import combinations

import pytest

from tests.support.judged import (
    both_orders,
    numbers,
    one_each,
    prompts_of,
    score,
)


def test_a_circle_is_counted_and_a_missing_pair_is_no_triple():
    prompts = list(prompts_of(4))
    beats = {("base", "a"), ("a", "b"), ("b", "base")}
    judgments = both_orders(
        prompts[:2], list(combinations(["base", "a", "b"], 2)), lambda _, *both: both in beats
    )
    judgments += both_orders(
        prompts[2:3], [("base", "a"), ("a", "b")], lambda _, *both: both in beats
    )
    beats_in_line = {("base", "a"), ("a", "b"), ("base", "b")}
    judgments += both_orders(
        prompts[3:],
        list(combinations(["base", "a", "b"], 2)),
        lambda _, *both: both in beats_in_line,
    )

    share = numbers(judgments, one_each("base", "a", "b"), num_prompts=4)["intransitive_share"]

    assert share["value"] == pytest.approx(2 / 3)
    assert share["n"] == 3


LEVELS = (1.0, 2.0, 3.0, 4.0)


def test_scores_are_means_of_distributions_by_turn_and_category():
    prompts = prompts_of(4, ("math", "prose"))
    ids = list(prompts)
    judgments = [
        score(p, "base", (0.5, 0.0, 0.0, 0.5), LEVELS, turn=turn) for p in ids for turn in (1, 2)
    ]
    judgments += [score(p, "a", (0.0, 0.0, 1.0, 0.0), LEVELS, turn=1) for p in ids[:2]]
    judgments += [score(p, "a", (0.0, 1.0, 0.0, 0.0), LEVELS, turn=2) for p in ids[:2]]
    judgments += [score(ids[2], "a", (), LEVELS, status="parse_error")]

    report = numbers(judgments, one_each("base", "a"), prompts=prompts)

    base, a = report["scores"]
    assert base["mean"]["value"] == pytest.approx(2.5)
    # Half the mass lies 1.5 below the mean.
    assert base["risk_averse"]["value"] == pytest.approx(2.5 - (0.5 * 1.5**2) ** 0.5)
    assert (a["mean"]["value"], a["mean"]["n"]) == (2.5, 2)
    assert a["by_turn"]["1"]["value"] == 3.0
    assert a["by_turn"]["2"]["value"] == 2.0
    assert set(base["by_category"]) == {"math", "prose"}
    assert a["by_category"]["math"]["n"] == 1
    assert report["win_matrix"] == []
    assert report["order"] is report["strengths"] is report["detectable"] is None


def test_a_better_answer_with_the_worse_score_is_a_conflict():
    prompts = list(prompts_of(4))
    judgments = both_orders(prompts[:3], [("a", "base")], lambda _, first, second: first == "a")
    judgments += [score(p, "base", (0.0, 0.0, 1.0, 0.0), LEVELS) for p in prompts]
    judgments += [score(prompts[0], "a", (1.0, 0.0, 0.0, 0.0), LEVELS)]
    judgments += [score(prompts[1], "a", (0.0, 0.0, 0.0, 1.0), LEVELS)]

    report = numbers(judgments, one_each("base", "a"), num_prompts=4)

    # The third pair has no score of a, the fourth was not judged.
    assert report["conflict_share"]["value"] == 0.5
    assert report["conflict_share"]["n"] == 2


def test_label_mass_is_reported_where_a_judge_tells():
    prompts = list(prompts_of(5))
    told = both_orders(prompts, [("a", "base")], lambda *_: 0.5, mass=0.9)
    untold = both_orders(prompts, [("a", "base")], lambda *_: 0.5)

    methods = one_each("base", "a")
    assert numbers(told, methods, num_prompts=5)["order"]["label_mass"]["value"] == pytest.approx(
        0.9
    )
    assert numbers(untold, methods, num_prompts=5)["order"]["label_mass"] is None
