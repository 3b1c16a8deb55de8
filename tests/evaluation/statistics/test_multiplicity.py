import numpy as np
import pytest
from scipy import stats

from prefopt.evaluation.statistics.intervals import sign_flip_p
from prefopt.evaluation.statistics.multiplicity import (
    holm,
    minimum_detectable_difference,
    simultaneous_level,
)


def test_holm_multiplies_by_what_is_left_and_keeps_the_order():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1: 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_simultaneous_intervals_share_the_error():
    assert simultaneous_level(10) == pytest.approx(0.995)
    assert simultaneous_level(1) == 0.95


@pytest.mark.parametrize(
    ("standard_error", "num_tests", "expected"),
    [(1.2, 1, 3.4), (1.2, 10, 4.4), (1.2, 28, 4.8), (1.5, 1, 4.2), (1.5, 10, 5.5), (1.5, 28, 5.9)],
)
def test_what_a_test_can_see(standard_error, num_tests, expected):
    assert round(minimum_detectable_difference(standard_error, num_tests), 1) == expected


def test_mt_bench_can_see_two_thirds_of_a_point():
    # 80 questions with a paired standard deviation of 2.
    assert minimum_detectable_difference(2 / 80**0.5, 1) == pytest.approx(0.63, abs=0.005)


def test_few_degrees_of_freedom_see_less():
    wide = minimum_detectable_difference(1.0, 1, df=2.0)

    assert wide == pytest.approx(stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2))


def test_the_power_is_reached():
    rng = np.random.default_rng(0)
    difference = minimum_detectable_difference(0.1, 1)
    z = (rng.normal(difference, 0.1, size=100_000)) / 0.1

    assert (np.abs(z) > stats.norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.slow
def test_holm_keeps_the_family_wise_error():
    # Seven candidates that are all the baseline: wins are around 1/2 and correlated by prompt.
    rng = np.random.default_rng(4)
    num_wrong = 0
    for _ in range(1000):
        shared = rng.normal(0, 0.1, size=(1, 60))
        wins = 0.5 + shared * rng.choice([-1, 1], size=(1, 60)) + rng.normal(0, 0.2, size=(7, 60))
        num_wrong += min(holm([sign_flip_p(each) for each in wins])) < 0.05

    # Two standard errors of a share of 5 % over 1000 worlds are 1.4 points.
    assert num_wrong / 1000 <= 0.064
