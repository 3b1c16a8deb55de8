"""Whether a judge agrees with itself: over orders, over triples, over pairs and scores."""

from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.statistics.intervals import mean_interval

_EQUAL = 1e-9


def verdicts(probs: Float[np.ndarray, "judgments 3"]) -> Int[np.ndarray, " judgments"]:
    """What a judge decides: 1 the first, -1 the second, 0 a tie.

    A tie is what is likelier than both, or neither of two that are equally likely.
    """
    first, second, tie = probs.T
    is_tie = (tie >= np.maximum(first, second)) | (np.abs(first - second) <= _EQUAL)
    return np.where(is_tie, 0, np.where(first > second, 1, -1))


def first_slot_rate(
    wins: Float[np.ndarray, " judgments"], prompts: Shaped[np.ndarray, " judgments"], seed: int = 0
) -> Estimate:
    """Mean win of the answer that is shown first, ties half: 0.5 if the order has no effect.

    Only of pairs that were shown in both orders; else it would depend on who stood first.
    """
    return mean_interval(wins, "prompts", clusters=prompts, share=True, seed=seed)


def consistent_share(
    forward: Int[np.ndarray, " pairs"],
    backward: Int[np.ndarray, " pairs"],
    prompts: Shaped[np.ndarray, " pairs"],
    seed: int = 0,
) -> Estimate:
    """Share of pairs for which both orders have the same verdict.

    `forward` and `backward` are `verdicts` in the two orders, each 1 for the one shown first.
    """
    agree = (forward == -backward).astype(float)
    return mean_interval(agree, "prompts", clusters=prompts, share=True, seed=seed)


def intransitive_shares(
    wins: Float[np.ndarray, "methods methods prompts"],
) -> Float[np.ndarray, " prompts"]:
    """Share of triples on a prompt where a beats b, b beats c and c beats a.

    Args:
        wins: probability that the row's answer beats the column's, NaN where that was not judged.
            Exactly 1/2 is a tie, and a triple with a tie is no circle.

    Returns:
        One share per prompt, NaN where no triple was judged whole.
    """
    num_prompts = wins.shape[2]
    num_circles, num_triples = np.zeros(num_prompts), np.zeros(num_prompts)
    for a, b, c in combinations(range(len(wins)), 3):
        margins = np.stack([wins[a, b], wins[b, c], wins[c, a]]) - 0.5
        num_triples += ~np.isnan(margins).any(axis=0)
        num_circles += (margins > _EQUAL).all(axis=0) | (margins < -_EQUAL).all(axis=0)
    return np.where(num_triples > 0, num_circles / np.maximum(num_triples, 1), np.nan)


def conflicts(
    wins: Float[np.ndarray, " pairs"], score_differences: Float[np.ndarray, " pairs"]
) -> Bool[np.ndarray, " pairs"]:
    """Where the better answer by pair has the worse score; a tie in either is no conflict."""
    margins = wins - 0.5
    differ = (np.abs(margins) > _EQUAL) & (np.abs(score_differences) > _EQUAL)
    return np.asarray(differ & (np.sign(margins) == -np.sign(score_differences)))
