"""Many tests at once, and what a test could have seen."""

from collections.abc import Sequence

from scipy import stats
from statsmodels.stats.multitest import multipletests


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the family-wise error at the level (Holm, 1979)."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def simultaneous_level(num_intervals: int, level: float = 0.95) -> float:
    """Level of each of several intervals that hold all at once with `level` (Bonferroni)."""
    return 1 - (1 - level) / max(num_intervals, 1)


def minimum_detectable_difference(
    standard_error: float,
    num_tests: int,
    power: float = 0.8,
    level: float = 0.05,
    df: float = float("inf"),
) -> float:
    """The smallest difference that is seen with this power, in the unit of the standard error.

    Of one of `num_tests` two-sided tests under Holm's correction in the worst case, in which it has
    to pass level / num_tests: (t[1 - level / (2 num_tests)] + t[power]) * standard_error.

    Args:
        standard_error: of the difference.
        num_tests: size of the family, at least 1.
        power: probability of seeing it, in (0, 1).
        level: family-wise error, in (0, 1).
        df: degrees of freedom of the standard error; few seeds have few.
    """
    quantile = stats.t.isf(level / (2 * num_tests), df) + stats.t.ppf(power, df)
    return float(quantile) * standard_error
