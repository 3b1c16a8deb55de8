"""Means with intervals over clusters: what belongs to one prompt is drawn together.

The bootstrap is BCa (Efron, Better Bootstrap Confidence Intervals, 1987) with clusters as units. A
mean is a ratio of sums, so clusters may differ in size.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from prefopt.evaluation.numbers import Estimate

LEVEL = 0.95
_DRAWS_AT_ONCE = 2**22


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
    found = {}
    for name, each in numbers.items():
        sums, sizes = _totals(each, num_clusters)
        value = float(sums.sum() / sizes.sum())
        there = sizes > 0
        low, high = _interval(
            sums[there], sizes[there], name in shares, num_resamples, np.random.default_rng(seed)
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


def _interval(
    sums: Float[np.ndarray, " c"],
    sizes: Float[np.ndarray, " c"],
    is_share: bool,
    num_resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float] | tuple[None, None]:
    """BCa, over clusters that have a part in the number."""
    if len(sums) < 2 or not np.isfinite(sums).all():
        return None, None
    means = sums / sizes
    if np.allclose(means, means[0], rtol=1e-12, atol=0.0):
        value = float(means[0])
        bound = ((1 - LEVEL) / 2) ** (1 / len(means))
        if is_share and value == 1:
            return bound, 1.0
        return (0.0, 1 - bound) if is_share and value == 0 else (value, value)
    low, high = stats.bootstrap(
        (sums, sizes),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, _DRAWS_AT_ONCE // len(sums)),
        confidence_level=LEVEL,
        method="BCa",
        rng=rng,
    ).confidence_interval
    return float(low), float(high)


def _ratio(
    sums: Float[np.ndarray, "*rows c"], sizes: Float[np.ndarray, "*rows c"], axis: int = -1
) -> Float[np.ndarray, "*rows"] | float:
    """The mean over clusters that were drawn, as often as each was."""
    ratio: Float[np.ndarray, "*rows"] | float = sums.sum(axis=axis) / sizes.sum(axis=axis)
    return ratio
