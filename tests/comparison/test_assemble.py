import math

import pytest

from prefopt.comparison.assemble import pooled
from prefopt.evaluation.numbers import Estimate


def estimate(value: float, half: float) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=10, unit="pairs")


def test_over_seeds_the_spread_of_seeds_and_of_data_add_up():
    found = pooled([estimate(0.1, 0.3), estimate(0.3, 0.3), estimate(0.2, 0.3)])

    # s = 0.1, and t of 2 degrees of freedom is 4.3027.
    half = math.hypot(0.3, 4.3027 * 0.1 / math.sqrt(3))
    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
    assert found["unit"] == "pairs, 3 seeds"


def test_the_interval_of_a_share_stays_between_0_and_1():
    # Two seeds: t is 12.7, so the interval would be wider than all shares.
    found = pooled([estimate(0.6, 0.1), estimate(0.8, 0.1)], share=True)

    assert (found["low"], found["high"]) == (0.0, 1.0)
