from math import sqrt

import numpy as np
import pytest

from prefopt.evaluation.statistics.distributions import (
    aggregate_orders,
    expected,
    lower_semideviation,
    mean_compare,
    mode,
    quantile,
    quantile_compare,
    risk_averse,
    risk_averse_compare,
    superiority,
    tempered_expectation,
)

LEVELS = np.array([0.0, 0.5, 1.0])
RISKY = np.array([0.5, 0.0, 0.5])
SURE = np.array([0.0, 1.0, 0.0])
GOOD = np.array([0.0, 0.25, 0.75])


def test_the_mean_is_that_of_the_distribution_on_its_levels():
    assert expected(GOOD, LEVELS) == pytest.approx(0.875)
    assert expected(np.stack([RISKY, SURE]), np.array([1.0, 2.0, 6.0])) == pytest.approx([3.5, 2.0])


def test_only_what_lies_below_the_mean_is_a_risk():
    # Mean 1/2, half the mass 1/2 below: sqrt(1/2 * 1/4).
    assert lower_semideviation(RISKY, LEVELS) == pytest.approx(sqrt(0.125))
    assert lower_semideviation(SURE, LEVELS) == 0.0
    # Mean 7/8, a quarter of the mass 3/8 below: sqrt(1/4 * 9/64) = 3/16.
    assert risk_averse(GOOD, LEVELS) == pytest.approx(0.875 - 0.1875)


def test_mode_median_and_first_percentile():
    probs = np.array([[0.005, 0.395, 0.6], [0.4, 0.3, 0.3], [0.5, 0.5, 0.0]])

    assert mode(probs, LEVELS).tolist() == [1.0, 0.0, 0.0]
    assert quantile(probs, LEVELS, 0.5).tolist() == [1.0, 0.5, 0.0]
    assert quantile(probs, LEVELS, 0.01).tolist() == [0.5, 0.0, 0.0]


def test_mean_compare_is_the_mean_difference_on_the_scale_of_its_spread():
    # GOOD - SURE is 0 or 1/2, with 3/4 on 1/2: mean 3/8, mean distance 3/8, sd 1/2 sqrt(3/16).
    sd = 0.5 * sqrt(3 / 16)
    assert mean_compare(GOOD, SURE, LEVELS) == pytest.approx(0.375 / (0.375 + sd))
    assert mean_compare(SURE, GOOD, LEVELS) == pytest.approx(-0.375 / (0.375 + sd))
    assert mean_compare(SURE, SURE, LEVELS) == 0.0
    one, zero = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    assert mean_compare(one, zero, LEVELS) == 1.0


def test_a_risk_averse_comparison_prefers_the_sure_of_equal_means():
    # Means are equal, so all is the shift s = sqrt(1/8) of RISKY. X1 - s - X2 is +-1/2 - s:
    # its mean distance from 0 is 1/2 as s < 1/2, and its sd is 1/2.
    s = sqrt(0.125)
    assert mean_compare(RISKY, SURE, LEVELS) == 0.0
    assert risk_averse_compare(RISKY, SURE, LEVELS) == pytest.approx(-s / (0.5 + 0.5))


def test_superiority_counts_who_is_above():
    # GOOD against RISKY: above if RISKY is 0 (1/2); below if RISKY is 1 and GOOD is 1/2 (1/8).
    assert superiority(GOOD, RISKY) == pytest.approx(0.5 - 0.125)
    assert superiority(RISKY, GOOD) == pytest.approx(0.125 - 0.5)
    assert superiority(RISKY, RISKY) == 0.0


def test_quantiles_are_compared_at_the_same_depth():
    # RISKY's quantiles are 0 up to 1/2, then 1; SURE's are 1/2: below for half, above for half.
    assert quantile_compare(RISKY, SURE) == pytest.approx(0.0)
    # GOOD: 1/2 up to 1/4, then 1. Against RISKY above up to 1/2, then equal.
    assert quantile_compare(GOOD, RISKY) == pytest.approx(0.5)
    assert quantile_compare(np.stack([GOOD, SURE]), np.stack([SURE, SURE])) == pytest.approx(
        [0.75, 0.0]
    )


def test_quantile_comparison_is_its_integral():
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(7), size=2)
    u = (np.arange(200_000) + 0.5) / 200_000
    by_sum = np.sign(
        np.searchsorted(first.cumsum(), u).astype(int)
        - np.searchsorted(second.cumsum(), u).astype(int)
    ).mean()

    assert quantile_compare(first, second) == pytest.approx(by_sum, abs=1e-4)


def test_orders_are_added_before_a_verdict():
    # a: 0.6 + 0.3 = 0.9; b: 0.3 + 0.6 = 0.9: pure slot bias is a tie.
    assert aggregate_orders((0.6, 0.3, 0.1), (0.6, 0.3, 0.1)) == 0
    # a: 0.6 + 0.5 = 1.1; b: 0.3 + 0.4 = 0.7; half the lead is 0.2.
    assert aggregate_orders((0.6, 0.3, 0.1), (0.4, 0.5, 0.1)) == 1
    assert aggregate_orders((0.6, 0.3, 0.1), (0.4, 0.5, 0.1), delta=0.19) == 1
    assert aggregate_orders((0.6, 0.3, 0.1), (0.4, 0.5, 0.1), delta=0.21) == 0
    assert aggregate_orders((0.2, 0.7, 0.1), (0.8, 0.1, 0.1)) == -1
    assert aggregate_orders((0.2, 0.2, 0.6), (0.3, 0.2, 0.5)) == 0


def test_a_tempered_expectation_sharpens():
    probs = np.array([0.5, 0.3, 0.2])

    # Weights are the odds to the power of 5: 1, (3/7)^5, (1/4)^5.
    weights = np.array([1.0, (3 / 7) ** 5, 0.25**5])
    assert tempered_expectation(probs, LEVELS) == pytest.approx(weights @ LEVELS / weights.sum())
    odds = np.array([1.0, 3 / 7, 0.25])
    assert tempered_expectation(probs, LEVELS, 1.0) == pytest.approx(odds @ LEVELS / odds.sum())


def test_a_tempered_expectation_of_the_sure_is_that_level():
    assert tempered_expectation(np.stack([SURE, GOOD]), LEVELS)[0] == 0.5
    # Odds 1/3 and 3 to the power of 5; the level without probability is left out.
    low, high = (1 / 3) ** 5, 3.0**5
    assert tempered_expectation(GOOD, LEVELS) == pytest.approx((0.5 * low + high) / (low + high))
