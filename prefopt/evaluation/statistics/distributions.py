"""One number out of a distribution over scores, or out of two of them.

`probs` are over `levels`, which rise along the last axis. Comparisons give -1 (the second is surely
better) to 1 (the first is), and take the two scores as independent.

Papers: Wang et al., Improving LLM-as-a-Judge Inference with the Judgment Distribution, 2025,
arxiv.org/abs/2503.03064; Wang et al., TrustJudge, 2025, arxiv.org/abs/2509.21117.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Probs = Float[np.ndarray, "*batch levels"]
Levels = Float[np.ndarray, " levels"]
Values = Float[np.ndarray, "*batch"]

_EQUAL = 1e-9


def expected(probs: Probs, levels: Levels) -> Values:
    """Mean of the distribution."""
    return np.asarray(probs @ levels)


def lower_semideviation(probs: Probs, levels: Levels) -> Values:
    """sqrt(E[max(0, mean - x)^2]): the spread below the mean."""
    below = np.maximum(0, expected(probs, levels)[..., None] - levels)
    return np.asarray(np.sqrt((probs * below**2).sum(axis=-1)))


def risk_averse(probs: Probs, levels: Levels) -> Values:
    """Mean less lower semi-deviation."""
    return np.asarray(expected(probs, levels) - lower_semideviation(probs, levels))


def mode(probs: Probs, levels: Levels) -> Values:
    """The likeliest level; the lowest of several."""
    return np.asarray(levels[probs.argmax(axis=-1)])


def quantile(probs: Probs, levels: Levels, q: float) -> Values:
    """The lowest level up to which the probability is at least q; 0.5 is the lower median."""
    reached = probs.cumsum(axis=-1) >= q - _EQUAL
    return np.asarray(levels[reached.argmax(axis=-1)])


def mean_compare(first: Probs, second: Probs, levels: Levels) -> Values:
    """E[X1 - X2] / (E|X1 - X2| + sd(X1 - X2)); 0 where both are the same for sure."""
    return _compare(first, second, levels, shift=np.zeros(first.shape[:-1]))


def risk_averse_compare(first: Probs, second: Probs, levels: Levels) -> Values:
    """RAM: `mean_compare` of scores from each of which its lower semi-deviation is taken off."""
    shift = lower_semideviation(first, levels) - lower_semideviation(second, levels)
    return _compare(first, second, levels, shift=np.asarray(shift))


def superiority(first: Probs, second: Probs) -> Values:
    """PS: P(X1 > X2) - P(X1 < X2)."""
    joint = _joint(first, second)
    below = np.tril(joint, -1).sum(axis=(-1, -2))
    return np.asarray(below - np.triu(joint, 1).sum(axis=(-1, -2)))


def quantile_compare(first: Probs, second: Probs) -> Values:
    """QT: integral over u of the sign of Q1(u) - Q2(u), quantile functions of the two."""
    sums = np.stack([first.cumsum(axis=-1), second.cumsum(axis=-1)])
    sums[..., -1] = 1.0
    edges = np.sort(np.concatenate([sums[0], sums[1]], axis=-1), axis=-1)
    starts = np.concatenate([np.zeros_like(edges[..., :1]), edges[..., :-1]], axis=-1)
    middles = (starts + edges) / 2
    # The level that holds quantile u is the number of levels whose cumulated probability is below.
    ranks = (sums[..., None, :] < middles[..., :, None]).sum(axis=-1)
    return np.asarray((np.sign(ranks[0] - ranks[1]) * (edges - starts)).sum(axis=-1))


def aggregate_orders(
    forward: Sequence[float], backward: Sequence[float], delta: float = 0.0
) -> int:
    """TrustJudge's likelihood-aware verdict over both orders: 1 for a, -1 for b, 0 for a tie.

    Args:
        forward: (a better, b better, tie), shown with a first: P(first), P(second), P(tie).
        backward: the same probabilities of slots, shown with b first.
        delta: how much likelier the likeliest verdict has to be than the next, on average over both
            orders; else a tie.
    """
    a = forward[0] + backward[1]
    b = forward[1] + backward[0]
    tie = forward[2] + backward[2]
    best, next_best, _ = sorted((a, b, tie), reverse=True)
    if best - next_best <= _EQUAL or (best - next_best) / 2 < delta or best == tie:
        return 0
    return 1 if best == a else -1


def tempered_expectation(probs: Probs, levels: Levels, temperature: float = 0.2) -> Values:
    """Mean under weights proportional to exp(logit(p) / temperature), as TrustJudge's code has it.

    At 1 the weights are the odds p / (1 - p), not p. Levels with a probability of 0 or 1 are left
    out, as there; a distribution that is sure has the level that it is sure of.
    """
    inner = (probs > 0) & (probs < 1)
    safe = np.where(inner, probs, 0.5)
    logits = np.where(inner, np.log(safe) - np.log1p(-safe), -np.inf) / temperature
    sure = ~inner.any(axis=-1, keepdims=True)
    logits = np.where(sure, np.where(probs > 0, 0.0, -np.inf), logits)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return expected(weights / weights.sum(axis=-1, keepdims=True), levels)


def _joint(first: Probs, second: Probs) -> Float[np.ndarray, "*batch levels levels"]:
    return np.asarray(first[..., :, None] * second[..., None, :])


def _compare(first: Probs, second: Probs, levels: Levels, *, shift: Values) -> Values:
    joint = _joint(first, second)
    differences = levels[:, None] - levels[None, :]
    mean = (joint * differences).sum(axis=(-1, -2))
    distance = (joint * np.abs(differences - shift[..., None, None])).sum(axis=(-1, -2))
    variance = (joint * (differences - mean[..., None, None]) ** 2).sum(axis=(-1, -2))
    scale = np.asarray(distance + np.sqrt(variance))
    zero = np.zeros_like(scale)
    np.divide(mean - shift, scale, out=zero, where=scale > _EQUAL * np.ptp(levels))
    return zero
