"""Intervals over clusters, against scipy and against a known truth."""

import numpy as np
import pytest
from scipy import stats

from prefopt.evaluation.clusters import Clustered, estimates


def drawn(generator, num_clusters, *, mean=1.0):
    """Clusters of 1 to 4 values with a common effect each."""
    cluster = np.repeat(np.arange(num_clusters), generator.integers(1, 5, num_clusters))
    effects = generator.exponential(mean, num_clusters)
    return effects[cluster] + generator.normal(0, 0.5, len(cluster)), cluster


def test_an_interval_is_that_of_scipys_bca_over_clusters():
    values, cluster = drawn(np.random.default_rng(0), 120)
    sums, sizes = np.bincount(cluster, weights=values), np.bincount(cluster).astype(float)

    found = estimates(
        {"x": Clustered(values=values, cluster=cluster)},
        num_clusters=120,
        unit="pairs",
        num_resamples=20_000,
    )["x"]

    of_scipy = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        method="BCa",
        n_resamples=20_000,
        rng=1,
    )
    assert found["value"] == pytest.approx(values.mean())
    assert (found["n"], found["unit"]) == (len(values), "pairs")
    # Two bootstraps of 20,000 draws differ by their own noise alone.
    noise = 0.05 * of_scipy.standard_error
    assert found["low"] == pytest.approx(of_scipy.confidence_interval.low, abs=noise)
    assert found["high"] == pytest.approx(of_scipy.confidence_interval.high, abs=noise)


@pytest.mark.slow
def test_intervals_cover_the_truth_and_those_that_ignore_clusters_do_not():
    generator = np.random.default_rng(1)
    covered = {"clusters": 0, "values": 0}
    for trial in range(1000):
        values, cluster = drawn(generator, 150)
        own = {"clusters": cluster, "values": np.arange(len(values))}
        for name, numbers in own.items():
            found = estimates(
                {"x": Clustered(values=values, cluster=numbers)},
                num_clusters=int(numbers.max()) + 1,
                unit="pairs",
                num_resamples=999,
                seed=trial,
            )["x"]
            covered[name] += found["low"] <= 1.0 <= found["high"]
    assert 930 <= covered["clusters"] <= 970
    assert covered["values"] < 880


def test_a_weighted_mean_is_a_ratio_of_sums():
    # (2 + 3 + 4) / (1 + 2 + 3)
    numbers = {
        "x": Clustered(
            values=np.array([2.0, 3.0, 4.0]),
            weights=np.array([1.0, 2.0, 3.0]),
            cluster=np.array([0, 1, 1]),
        )
    }

    assert estimates(numbers, num_clusters=2, unit="samples")["x"]["value"] == 1.5


def test_numbers_over_part_of_the_clusters_are_drawn_with_the_others():
    generator = np.random.default_rng(2)
    values, cluster = drawn(generator, 60)
    half = cluster % 2 == 0

    found = estimates(
        {
            "all": Clustered(values=values, cluster=cluster),
            "half": Clustered(values=values[half], cluster=cluster[half]),
            "again": Clustered(values=values, cluster=cluster),
        },
        num_clusters=60,
        unit="pairs",
    )

    assert found["all"] == found["again"]
    assert found["half"]["value"] == pytest.approx(values[half].mean())
    assert found["half"]["low"] < found["half"]["value"] < found["half"]["high"]


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.025**0.1, 1), (0.0, 0, 1 - 0.025**0.1)])
def test_a_share_that_nothing_speaks_against_has_the_exact_binomial_bound(value, low, high):
    # Ten clusters of two values, all alike; scipy counts the clusters as trials.
    numbers = {"x": Clustered(values=np.full(20, value), cluster=np.arange(20) // 2)}

    found = estimates(numbers, num_clusters=10, unit="pairs", shares=["x"])["x"]

    exact = stats.binomtest(round(10 * value), 10).proportion_ci(0.95, "exact")
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(
    ("values", "cluster", "interval"),
    [([3.0, 5.0], [0, 0], (None, None)), ([3.0, 3.0, 3.0], [0, 1, 2], (3.0, 3.0))],
    ids=["one cluster", "no spread"],
)
def test_nothing_to_draw_is_told_from_nothing_that_differs(values, cluster, interval):
    numbers = {"x": Clustered(values=np.array(values), cluster=np.array(cluster))}

    found = estimates(numbers, num_clusters=3, unit="pairs")["x"]

    assert (found["low"], found["high"]) == interval
