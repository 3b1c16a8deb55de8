"""Means with intervals over clusters: what belongs to one prompt is drawn together.

The bootstrap is BCa (Efron, Better Bootstrap Confidence Intervals, 1987) with clusters as units. A
mean is a ratio of sums, so clusters may differ in size, and all numbers share the same draws.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from prefopt.evaluation.numbers import Estimate

LEVEL = 0.95
_NORMAL = NormalDist()
_DRAWS_AT_ONCE = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Clustered:
    """A mean that is to get an interval: sum of `values` over sum of `weights`."""

    values: Float[np.ndarray, " n"]
    cluster: Int[np.ndarray, " n"]
    """Number of the cluster of each value, from 0."""
    weights: Float[np.ndarray, " n"] | None = None
    """What each value is a sum over, such as tokens; None: 1 each, and the mean is a plain one."""


def estimates(
    numbers: Mapping[str, Clustered],
    *,
    num_clusters: int,
    unit: str,
    shares: Collection[str] = (),
    num_resamples: int = 4999,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each number with its 95 % interval.

    What is over fewer than 2 clusters has no interval. Where all clusters have the same mean, so
    have all draws, and the interval is that value; but a share that is 0 or 1 everywhere gets the
    exact binomial interval over its clusters (Clopper and Pearson, 1934): 0 of 40 is not never.

    Args:
        numbers: name -> values, none of them empty.
        num_clusters: how many clusters there are; cluster numbers are below it.
        unit: what a value stands for, in the plural.
        shares: names of the numbers that lie in [0, 1].
        num_resamples: draws of the bootstrap.
        seed: of the draws.
    """
    totals = {name: _totals(each, num_clusters) for name, each in numbers.items()}
    sums = np.stack([each[0] for each in totals.values()], axis=1)
    sizes = np.stack([each[1] for each in totals.values()], axis=1)
    drawn = _resampled(sums, sizes, num_resamples, np.random.default_rng(seed))
    found = {}
    for column, (name, each) in enumerate(numbers.items()):
        value = float(sums[:, column].sum() / sizes[:, column].sum())
        there = sizes[:, column] > 0
        low, high = _interval(
            value, sums[there, column], sizes[there, column], drawn[:, column], name in shares
        )
        if name in shares and low is not None and high is not None:
            # Linear parts of curved numbers can leave the range.
            low, high = max(low, 0.0), min(high, 1.0)
        found[name] = Estimate(value=value, low=low, high=high, n=len(each.values), unit=unit)
    return found


def _totals(
    each: Clustered, num_clusters: int
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Sum of values and of weights in each cluster."""
    assert len(each.values) > 0, "a mean over nothing"
    weights = np.ones_like(each.values) if each.weights is None else each.weights
    return (
        np.bincount(each.cluster, weights=each.values, minlength=num_clusters),
        np.bincount(each.cluster, weights=weights, minlength=num_clusters),
    )


def _resampled(
    sums: Float[np.ndarray, "C M"],
    sizes: Float[np.ndarray, "C M"],
    num_resamples: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, "B M"]:
    """The M means over clusters drawn with replacement; NaN where a draw has none of a number."""
    num_clusters = len(sums)
    at_once = max(1, _DRAWS_AT_ONCE // num_clusters)
    means = []
    for first in range(0, num_resamples, at_once):
        num = min(at_once, num_resamples - first)
        drawn = generator.integers(num_clusters, size=(num, num_clusters))
        drawn += np.arange(num)[:, None] * num_clusters
        counts = np.bincount(drawn.ravel(), minlength=num * num_clusters)
        times = counts.reshape(num, num_clusters).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((times @ sums) / (times @ sizes))
    return np.concatenate(means)


def _interval(
    value: float,
    sums: Float[np.ndarray, " c"],
    sizes: Float[np.ndarray, " c"],
    drawn: Float[np.ndarray, " B"],
    is_share: bool,
) -> tuple[float, float] | tuple[None, None]:
    """BCa, over clusters that have a part in the number."""
    if len(sums) < 2 or not np.isfinite(value):
        return None, None
    means = sums / sizes
    if np.allclose(means, means[0], rtol=1e-12, atol=0.0):
        bound = ((1 - LEVEL) / 2) ** (1 / len(means))
        if is_share and value == 1:
            return bound, 1.0
        return (0.0, 1 - bound) if is_share and value == 0 else (value, value)
    drawn = drawn[~np.isnan(drawn)]
    # Half of the ties, or shares of few pairs would be pushed to one side.
    below = ((drawn < value).sum() + (drawn == value).sum() / 2) / len(drawn)
    edge = 0.5 / len(drawn)
    bias = _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * ((away**2).sum()) ** 1.5)
    levels = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        z = bias + _NORMAL.inv_cdf(tail)
        levels.append(_NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(drawn, levels)
    return float(low), float(high)
