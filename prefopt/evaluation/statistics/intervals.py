"""Means over prompts with intervals and p-values.

The prompt is the unit: several values of one prompt (samples, turns, orders) are averaged first.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.statistics.crossed import Spread, crossed_spread

_NUM_RESAMPLES = 9999
_BATCH = 500
_MAX_EXACT = 13
_ROUNDING = 1e-12


def mean_interval(
    values: Shaped[np.ndarray, " values"] | Sequence[float],
    unit: str,
    *,
    clusters: Shaped[np.ndarray, " values"] | Sequence[str] | None = None,
    share: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean with its BCa bootstrap interval over prompts (Efron, 1987).

    Too little to say: fewer than 2 prompts have no interval. If all prompts have the same value, so
    have all resamples, and the interval is that value; but a share that is 0 or 1 everywhere gets
    the exact binomial (Clopper-Pearson) interval, as 0 of 40 does not mean never.

    Args:
        values: at least one; finite.
        unit: what n counts, in the plural.
        clusters: the prompt of each value; None if each is of a prompt of its own.
        share: whether values are in [0, 1].
        level: of the interval.
        seed: of the bootstrap.
    """
    means = cluster_means(np.asarray(values, dtype=float), clusters)
    value, n = float(means.mean()), len(means)
    low, high = _interval(means, share=share, level=level, seed=seed)
    return Estimate(value=value, low=low, high=high, n=n, unit=unit)


def hierarchical_interval(
    values_by_seed: Sequence[Mapping[str, float]],
    unit: str,
    *,
    share: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean over prompts and training seeds; the interval speaks of new prompts and new seeds.

    Prompts that some seed lacks are left out, as all seeds are compared on the same ones. With one
    seed this is `mean_interval`, of that seed only, and the unit says so: `prompts, one seed`.

    Args:
        values_by_seed: one mapping from prompt to value per seed, with a prompt in common.
        unit: what n counts, in the plural; the number of seeds is added to it.
        share: whether values are in [0, 1]; the interval then is inside too.
        level: of the interval.
        seed: of the bootstrap, where there is one.
    """
    prompts = [prompt for prompt in values_by_seed[0] if all(prompt in m for m in values_by_seed)]
    table = np.array([[of_seed[prompt] for prompt in prompts] for of_seed in values_by_seed])
    return table_interval(table, unit=unit, share=share, level=level, seed=seed)


def table_interval(
    *tables: Float[np.ndarray, "_ prompts"],
    unit: str,
    share: bool = False,
    level: float = 0.95,
    seed: int = 0,
    spread: Spread | None = None,
) -> Estimate:
    """The same of tables of seeds by prompts, as `crossed_spread` takes them.

    With several seeds the interval is by `spread`, or by the tables' own if that is None.
    """
    num_seeds = max(map(len, tables))
    means = tables[0].mean(axis=0)
    value, n = float(means.mean()), len(means)
    unit = unit_of(unit, num_seeds)
    if num_seeds == 1 or n < 2 or all(np.ptp(table) == 0 for table in tables):
        low, high = _interval(means, share=share, level=level, seed=seed)
        return Estimate(value=value, low=low, high=high, n=n, unit=unit)
    half = (spread or crossed_spread(*tables)).half_width(level)
    low, high = value - half, value + half
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value=value, low=low, high=high, n=n, unit=unit)


def sign_flip_p(values: Float[np.ndarray, " prompts"], null: float = 0.5, seed: int = 0) -> float:
    """Two-sided p of a sign-flip test that values lie symmetrically around `null`.

    All 2^n flips for up to 13 prompts; else 9999 random ones and the observed one, so that p is
    never 0. What deviates from `null` as far as the observed mean counts, to rounding.
    """
    deviations = values - null
    if len(deviations) <= _MAX_EXACT:
        codes = np.arange(2 ** len(deviations))
        every = (codes[:, None] >> np.arange(len(deviations))) & 1
        return float(np.mean(_as_far(every, deviations)))
    rng = np.random.default_rng(seed)
    num_bytes = -(-len(deviations) // 8)
    packed = rng.integers(256, size=(_NUM_RESAMPLES, num_bytes), dtype=np.uint8)
    num_as_far = 0
    for start in range(0, _NUM_RESAMPLES, _BATCH):
        bits = np.unpackbits(packed[start : start + _BATCH], axis=1, count=len(deviations))
        num_as_far += int(_as_far(bits, deviations).sum())
    return (1 + num_as_far) / (1 + _NUM_RESAMPLES)


def unit_of(unit: str, num_seeds: int) -> str:
    """What n counts, and over how many training seeds: `prompts, 3 seeds`."""
    return f"{unit}, one seed" if num_seeds == 1 else f"{unit}, {num_seeds} seeds"


def cluster_means(
    values: Float[np.ndarray, " values"],
    clusters: Shaped[np.ndarray, " values"] | Sequence[str] | None,
) -> Float[np.ndarray, " clusters"]:
    """Mean per cluster; clusters in order of their names."""
    if clusters is None:
        return values
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index)


def _interval(
    means: Float[np.ndarray, " prompts"], *, share: bool, level: float, seed: int
) -> tuple[float, float] | tuple[None, None]:
    if len(means) < 2:
        return None, None
    value = float(means.mean())
    if np.ptp(means) <= _ROUNDING * abs(value):
        if not share or value not in (0.0, 1.0):
            return value, value
        exact = stats.binomtest(round(value * len(means)), len(means)).proportion_ci(level)
        return float(exact.low), float(exact.high)
    low, high = stats.bootstrap(
        (means,),
        np.mean,
        n_resamples=_NUM_RESAMPLES,
        batch=_BATCH,
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    assert math.isfinite(low)
    assert math.isfinite(high)
    return float(low), float(high)


def _as_far(
    bits: Shaped[np.ndarray, "flips prompts"], deviations: Float[np.ndarray, " prompts"]
) -> Shaped[np.ndarray, " flips"]:
    """Whether the sum with flipped signs is as far from 0 as the one that was observed."""
    total = deviations.sum()
    flipped = total - 2 * (bits @ deviations)
    return np.asarray(np.abs(flipped) >= abs(total) - _ROUNDING * np.abs(deviations).sum())
