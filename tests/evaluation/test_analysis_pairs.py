from itertools import combinations

import numpy as np
import pytest

from prefopt.errors import UserError
from tests.support.judged import (
    against,
    both_orders,
    noisy,
    numbers,
    one_each,
    prompts_of,
)


def test_seeds_meet_seed_by_seed():
    prompts = list(prompts_of(30))
    methods = {"base": ["b0", "b1", "b2"], "a": ["a0", "a1", "a2"]}
    chance = {"0": 0.5, "1": 0.6, "2": 0.7}
    judgments = both_orders(
        prompts,
        [("a0", "b0"), ("a1", "b1"), ("a2", "b2")],
        lambda _, first, second: chance[first[1]] if first[0] == "a" else 1 - chance[first[1]],
    )

    report = numbers(judgments, methods, num_prompts=30)

    win = against(report, "a")["win"]
    # Seed means 0.5, 0.6, 0.7: variance 0.01 over 3, and 4.303 is t of 2 degrees of freedom.
    assert win["value"] == pytest.approx(0.6)
    assert win["high"] == pytest.approx(0.6 + 4.303 * (0.01 / 3) ** 0.5, abs=1e-4)
    assert win["unit"] == "prompts, 3 seeds"
    controlled = against(report, "a")["length_controlled"]
    assert controlled["value"] == pytest.approx(0.6)
    assert controlled["unit"] == "prompts, 3 seeds"
    assert controlled["low"] < 0.5 < win["value"]
    assert report["strengths"][0]["win_against_baseline"] == controlled


def test_seeds_that_disagree_are_no_difference_however_many_prompts():
    prompts = list(prompts_of(100))
    methods = {"base": ["b"], "a": ["a0", "a1", "a2"]}
    chance = {"a0": 0.45, "a1": 0.6, "a2": 0.75}
    judgments = both_orders(
        prompts,
        [(system, "b") for system in methods["a"]],
        lambda _, first, second: chance[first] if first in chance else 1 - chance[second],
    )

    row = against(numbers(judgments, methods, num_prompts=100), "a")

    # Over prompts alone 0.6 would be beyond doubt; over three seeds it is not.
    assert row["win"]["low"] < 0.5
    assert row["p"] > 0.05
    assert row["outcome"] == "no difference seen"


@pytest.mark.slow
def test_methods_tell_each_other_how_much_seeds_differ():
    prompts = list(prompts_of(60))
    names = [f"m{i}" for i in range(6)]
    methods = {"base": ["base"], **{name: [f"{name}-{k}" for k in range(3)] for name in names}}
    shift = {"0": -0.02, "1": 0.0, "2": 0.02}

    def judge(_, first, second):
        system = second if first == "base" else first
        win = 0.5 + shift[system[-1]] + 0.05 * system.startswith("m0")
        return win if system == first else 1 - win

    pairs = [(system, "base") for name in names for system in methods[name]]
    together = numbers(both_orders(prompts, pairs, judge), methods, num_prompts=60)
    alone = numbers(
        both_orders(prompts, pairs[:3], judge),
        {name: methods[name] for name in ("base", "m0")},
        num_prompts=60,
    )

    # Variance 0.0004 over 3 seeds, by t of 6 * 2 and of 2 degrees of freedom.
    half = {
        row["p"]: row["win"]["high"] - 0.55
        for row in (against(together, "m0"), against(alone, "m0"))
    }
    assert list(half.values()) == pytest.approx(
        [2.1788 * (0.0004 / 3) ** 0.5, 4.3027 * (0.0004 / 3) ** 0.5], abs=1e-5
    )
    assert against(together, "m0")["outcome"] == "better"
    assert against(alone, "m0")["outcome"] == "better"
    assert against(together, "m1")["outcome"] == "no difference seen"


def test_all_seeds_may_meet_all():
    prompts = list(prompts_of(50))
    methods = {"base": ["b0", "b1", "b2"], "a": ["a0", "a1", "a2"]}
    strength = {"a0": 0.1, "a1": 0.2, "a2": 0.3, "b0": 0.0, "b1": 0.02, "b2": -0.02}
    judgments = both_orders(
        prompts,
        [(a, b) for a in methods["a"] for b in methods["base"]],
        lambda _, first, second: 0.5 + strength[first] - strength[second],
    )

    win = against(numbers(judgments, methods, num_prompts=50), "a")["win"]

    # Seeds of a: variance 0.01 over 3; seeds of the baseline: 0.0004 over 3.
    assert win["value"] == pytest.approx(0.7)
    assert win["high"] == pytest.approx(0.7 + 4.303 * (0.0104 / 3) ** 0.5, abs=1e-4)


def test_better_and_worse_are_said_after_holm_only():
    rng = np.random.default_rng(3)
    names = ["base", "good", "bad", *(f"same{i}" for i in range(5))]
    judge = noisy(rng, {"good": 1.0, "bad": -1.0})
    prompts = list(prompts_of(80))
    judgments = both_orders(prompts, [(name, "base") for name in names[1:]], judge)

    report = numbers(judgments, one_each(*names), num_prompts=80)

    assert against(report, "good")["outcome"] == "better"
    assert against(report, "bad")["outcome"] == "worse"
    for row in report["against_baseline"]:
        assert row["p_holm"] >= row["p"]
        assert (row["outcome"] == "no difference seen") == (row["p_holm"] >= 0.05)
    # Seven tests: the smallest p is multiplied by 7.
    smallest = min(row["p"] for row in report["against_baseline"])
    assert min(row["p_holm"] for row in report["against_baseline"]) == pytest.approx(7 * smallest)
    assert report["detectable"]["num_tests"] == 7
    assert report["detectable"]["all_tests"] > report["detectable"]["one_test"]


@pytest.mark.slow
def test_sanity_rows_cost_candidates_nothing():
    rng = np.random.default_rng(4)
    names = ["base", "good", "null", "longest"]
    judge = noisy(rng, {"good": 0.5, "null": -3.0, "longest": 0.2})
    prompts = list(prompts_of(60))
    judgments = both_orders(prompts, list(combinations(names, 2)), judge)

    all_rows = numbers(judgments, one_each(*names), num_prompts=60, sanity=("null", "longest"))
    alone = numbers(judgments, one_each("base", "good"), num_prompts=60)

    assert against(all_rows, "good") == against(alone, "good")
    assert against(all_rows, "null")["outcome"] == "worse"
    assert [row["method"] for row in all_rows["strengths"]] == ["good", "base"]
    assert all_rows["strengths"] == alone["strengths"]
    assert all_rows["length_effect"] == alone["length_effect"]
    assert all_rows["detectable"] == alone["detectable"]
    assert len(all_rows["win_matrix"]) == 6


def test_a_system_that_loses_everything_is_left_out_of_strengths_by_name():
    rng = np.random.default_rng(5)
    names = ["base", "good", "broken"]
    drawn = noisy(rng, {"good": 0.5})
    judgments = both_orders(
        list(prompts_of(40)),
        list(combinations(names, 2)),
        lambda prompt, first, second: (
            float(second == "broken")
            if "broken" in (first, second)
            else drawn(prompt, first, second)
        ),
    )

    report = numbers(judgments, one_each(*names), note="A rule.")

    assert [row["method"] for row in report["strengths"]] == ["good", "base"]
    assert report["note"].startswith(
        "A rule. Strengths leave out broken: it loses every comparison."
    )
    broken = against(report, "broken")
    assert broken["win"]["value"] == 0.0
    assert broken["win"]["high"] == pytest.approx(1 - 0.025 ** (1 / 40))
    assert broken["length_controlled"] is None
    assert broken["outcome"] == "worse"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"bse": ["b"], "a": ["a"]},
            "The baseline base is none of the methods. Did you mean 'bse'",
        ),
        ({"base": ["b"], "a": ["b"]}, "System b is listed twice"),
        ({"base": [], "a": ["a"]}, "Method base has no system"),
        ({"base": ["b"], "a": ["a0", "a1"], "c": ["c0", "c1", "c2"]}, "a has 2 seeds and c has 3"),
    ],
)
def test_methods_that_do_not_fit_are_refused(methods, message):
    with pytest.raises(UserError, match=message):
        numbers([], methods)
