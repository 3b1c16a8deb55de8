"""The win matrix, read in both directions."""

from prefopt.evaluation.numbers import Estimate, JudgeNumbers, PairNumbers

ALPHA = 0.05
"""Level of a test, after Holm's correction."""


def both_ways(judge: JudgeNumbers) -> dict[tuple[str, str], PairNumbers]:
    """Every ordered pair of methods -> the first against the second."""
    pairs = {(pair["a"], pair["b"]): pair for pair in judge["win_matrix"]}
    return pairs | {(b, a): _mirrored(pair) for (a, b), pair in pairs.items()}


def mean_wins(judge: JudgeNumbers) -> dict[str, float]:
    """Method -> its mean win rate over all others, the highest first."""
    wins: dict[str, list[float]] = {}
    for (method, _), pair in both_ways(judge).items():
        wins.setdefault(method, []).append(pair["win"]["value"])
    means = {method: sum(each) / len(each) for method, each in wins.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _mirrored(pair: PairNumbers) -> PairNumbers:
    win = pair["win"]
    turned: Estimate = {
        **win,
        "value": 1 - win["value"],
        "low": None if win["high"] is None else 1 - win["high"],
        "high": None if win["low"] is None else 1 - win["low"],
    }
    return {**pair, "a": pair["b"], "b": pair["a"], "win": turned}
