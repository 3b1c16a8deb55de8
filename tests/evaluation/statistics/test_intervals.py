import numpy as np
import pytest
from scipy import stats

from prefopt.evaluation.statistics.intervals import (
    cluster_means,
    hierarchical_interval,
    mean_interval,
    sign_flip_p,
    table_interval,
)


def covers(estimate, truth):
    return estimate["low"] <= truth <= estimate["high"]


def test_several_values_of_a_prompt_are_one():
    estimate = mean_interval(
        [0.0, 0.0, 0.0, 1.0], "prompts", clusters=["a", "a", "a", "b"], share=True
    )

    # Prompts say 0 and 1, so their mean is 1/2 and not 1/4.
    assert estimate["value"] == 0.5
    assert estimate["n"] == 2
    assert estimate["unit"] == "prompts"
    assert cluster_means(np.array([1.0, 2.0, 6.0]), ["b", "a", "b"]) == pytest.approx([2.0, 3.5])


def test_the_interval_is_scipys_bca():
    values = np.random.default_rng(3).exponential(size=60)

    estimate = mean_interval(values, "prompts", seed=5)

    expected = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(99))
    low, high = expected.confidence_interval
    assert estimate["value"] == pytest.approx(values.mean())
    # Two independent bootstraps of 9999: their ends differ by a few hundredths of the width.
    assert estimate["low"] == pytest.approx(low, abs=0.03 * (high - low))
    assert estimate["high"] == pytest.approx(high, abs=0.03 * (high - low))
    assert mean_interval(values, "prompts", seed=5) == estimate


def test_one_prompt_has_no_interval():
    estimate = mean_interval([0.7, 0.9], "prompts", clusters=["a", "a"])

    assert estimate == {"value": 0.8, "low": None, "high": None, "n": 1, "unit": "prompts"}


def test_equal_values_are_their_own_interval():
    estimate = mean_interval([0.5] * 20, "prompts", share=True)
    assert (estimate["low"], estimate["high"]) == (0.5, 0.5)
    lengths = mean_interval([0.0] * 20, "prompts")
    assert (lengths["low"], lengths["high"]) == (0.0, 0.0)


def test_values_that_are_equal_but_for_rounding_have_their_mean_inside():
    estimate = mean_interval(cluster_means(np.full(70, 0.99), np.arange(70) % 7), "prompts")
    third = mean_interval([0.1 * 3, 0.3, 0.3], "prompts")

    assert covers(estimate, estimate["value"])
    assert covers(third, third["value"])


def test_none_of_40_does_not_mean_never():
    never = mean_interval([0.0] * 40, "prompts", share=True)
    always = mean_interval([1.0] * 40, "prompts", share=True)

    # Clopper and Pearson: (1 - high)^40 = 0.025.
    assert never["low"] == 0
    assert never["high"] == pytest.approx(1 - 0.025 ** (1 / 40))
    assert always["low"] == pytest.approx(0.025 ** (1 / 40))
    assert always["high"] == 1


def test_few_prompts_flip_in_all_ways():
    values = np.array([0.9, 0.8, 0.7, 0.6])

    # All four above the null: only all plus and all minus are as far, 2 of 16.
    assert sign_flip_p(values) == 2 / 16
    assert sign_flip_p(np.array([0.5])) == 1.0
    assert sign_flip_p(np.array([0.9])) == 1.0


def test_many_prompts_flip_as_scipy_flips_them():
    values = np.random.default_rng(1).normal(0.53, 0.12, size=60)

    p = sign_flip_p(values, seed=2)

    expected = stats.permutation_test(
        (values - 0.5,), np.mean, permutation_type="samples", rng=np.random.default_rng(8)
    ).pvalue
    assert 0.02 < expected < 0.2
    # Of 9999 flips at p near 0.1 the standard error is 0.003, for each of the two.
    assert p == pytest.approx(expected, abs=0.015)


def test_p_is_never_0():
    assert sign_flip_p(np.full(200, 0.9)) == 1 / 10000
    assert sign_flip_p(np.full(200, 0.5)) == 1.0


def test_a_null_may_lie_elsewhere():
    values = np.random.default_rng(1).normal(3.0, 1.0, size=40)

    assert sign_flip_p(values, null=0.0) == 1 / 10000
    assert sign_flip_p(values, null=values.mean()) == pytest.approx(1.0, abs=1e-3)


def test_one_seed_is_a_bootstrap_over_its_prompts_and_says_so():
    values = np.random.default_rng(2).random(50)
    by_prompt = {f"p{index:02}": value for index, value in enumerate(values)}

    estimate = hierarchical_interval([by_prompt], "prompts", share=True)

    alone = mean_interval(values, "prompts", share=True)
    assert estimate == {**alone, "unit": "prompts, one seed"}


def test_several_seeds_widen_the_interval_and_are_named():
    values = np.random.default_rng(2).random(50) * 0.4
    seeds = [{f"p{i}": value + shift for i, value in enumerate(values)} for shift in (0, 0.2, 0.4)]

    estimate = hierarchical_interval(seeds, "prompts")

    # Seed means 0.2 apart: variance 0.04 over 3 seeds, t of 2 degrees of freedom; prompts alone
    # give far less, so the half width is a little above that of the seeds.
    of_seeds = stats.t.ppf(0.975, 2) * np.sqrt(0.04 / 3)
    half = estimate["high"] - estimate["value"]
    assert estimate["value"] == pytest.approx(values.mean() + 0.2)
    assert of_seeds < half < 1.02 * of_seeds
    assert estimate["unit"] == "prompts, 3 seeds"
    assert estimate["n"] == 50


def test_seeds_are_compared_on_the_prompts_that_all_answered():
    seeds = [{"a": 0.0, "b": 1.0, "c": 0.5}, {"b": 0.8, "a": 0.2}, {"a": 0.1, "b": 0.9, "d": 0.0}]

    estimate = hierarchical_interval(seeds, "prompts")

    assert estimate["n"] == 2
    assert estimate["value"] == pytest.approx((0.0 + 1.0 + 0.8 + 0.2 + 0.1 + 0.9) / 6)


def test_a_share_stays_between_0_and_1():
    table = np.array([[0.9, 1.0], [1.0, 0.95], [0.2, 0.4]])

    estimate = table_interval(table, unit="prompts", share=True)

    assert estimate["high"] == 1.0
    assert estimate["low"] == 0.0
    assert table_interval(table, unit="prompts")["high"] > 1.0


def test_seeds_that_all_always_win_have_the_exact_interval_of_their_prompts():
    estimate = table_interval(np.ones((3, 40)), unit="prompts", share=True)

    assert estimate["low"] == pytest.approx(0.025 ** (1 / 40))
    assert estimate["high"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [80, 200])
def test_intervals_cover_clustered_data(num_prompts):
    # Prompts have skewed win probabilities (Beta(2, 3), mean 0.4), each drawn 4 times.
    rng = np.random.default_rng(num_prompts)
    clusters = np.repeat(np.arange(num_prompts), 4)
    num_covered = 0
    for _ in range(2000):
        chance = rng.beta(2, 3, size=num_prompts).repeat(4)
        wins = (rng.random(len(chance)) < chance).astype(float)
        num_covered += covers(mean_interval(wins, "prompts", clusters=clusters, share=True), 0.4)

    # The standard error of a coverage over 2000 worlds is 0.5 points.
    assert 0.93 <= num_covered / 2000 <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.03, 0.2])
def test_hierarchical_intervals_cover_new_seeds_and_prompts(num_seeds, of_seeds):
    rng = np.random.default_rng(1)
    num_covered, num_naive = 0, 0
    for _ in range(4000):
        table = (
            0.2 * rng.standard_normal((1, 80))
            + of_seeds * rng.standard_normal((num_seeds, 1))
            + 0.3 * rng.standard_normal((num_seeds, 80))
        )
        num_covered += covers(table_interval(table, unit="prompts"), 0.0)
        means = table.mean(axis=0)
        num_naive += abs(means.mean()) <= stats.t.ppf(0.975, 79) * stats.sem(means)

    assert 0.93 <= num_covered / 4000 <= 0.97
    if of_seeds == 0.2:
        assert num_naive / 4000 < 0.6
