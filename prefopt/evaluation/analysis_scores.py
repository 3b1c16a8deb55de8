"""A judge's absolute scores, method by method."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from prefopt.evaluation.analysis_table import Entrants, Scores, complete, seed_table
from prefopt.evaluation.numbers import Estimate, ScoreNumbers
from prefopt.evaluation.statistics.distributions import expected, risk_averse
from prefopt.evaluation.statistics.intervals import table_interval


def score_means(scores: Scores) -> Float[np.ndarray, "rows 2"]:
    """Of each distribution its mean, and its mean less its lower semi-deviation."""
    means = np.zeros((len(scores.levels), 2))
    for levels in set(scores.levels):
        rows = [row for row, each in enumerate(scores.levels) if each == levels]
        probs = np.array([scores.probs[row] for row in rows], dtype=float)
        support = np.array(levels, dtype=float)
        means[rows, 0] = expected(probs, support)
        means[rows, 1] = risk_averse(probs, support)
    return means


def score_numbers(
    scores: Scores,
    means: Float[np.ndarray, "rows 2"],
    entrants: Entrants,
    categories: Sequence[str | None],
    seed: int,
) -> list[ScoreNumbers] | None:
    """One entry per method that has scores; None if none has.

    A prompt's score is the mean over its turns and samples. Prompts for which a seed of the method
    has no score are left out.

    Args:
        scores: as rows.
        means: of `score_means`.
        entrants: which system is of which method.
        categories: of each prompt; those without one are in no row by category.
        seed: of bootstraps.
    """
    methods = [
        index
        for index in range(len(entrants.methods))
        if (entrants.method[scores.system] == index).any()
    ]
    numbers = [_of_method(index, scores, means, entrants, categories, seed) for index in methods]
    told = [each for each in numbers if each is not None]
    return told or None


def _of_method(
    method: int,
    scores: Scores,
    means: Float[np.ndarray, "rows 2"],
    entrants: Entrants,
    categories: Sequence[str | None],
    seed: int,
) -> ScoreNumbers | None:
    is_own = entrants.method[scores.system] == method

    def estimate(column: int, mask: np.ndarray) -> Estimate | None:
        rows = np.flatnonzero(is_own & mask)
        table = complete(
            seed_table(
                entrants.seed[scores.system[rows]],
                scores.prompt[rows],
                means[rows, column],
                len(categories),
            )
        )
        return table_interval(table, unit="prompts", seed=seed) if table.size else None

    every = np.ones(len(is_own), dtype=bool)
    mean, averse = estimate(0, every), estimate(1, every)
    if mean is None or averse is None:
        return None
    category = np.array([each or "" for each in categories])[scores.prompt]
    by_category = {
        str(each): estimate(0, category == each) for each in np.unique(category[is_own]) if each
    }
    by_turn = {
        str(each): estimate(0, scores.turn == each) for each in np.unique(scores.turn[is_own])
    }
    return ScoreNumbers(
        method=entrants.methods[method],
        mean=mean,
        risk_averse=averse,
        by_category={name: each for name, each in by_category.items() if each is not None},
        by_turn={name: each for name, each in by_turn.items() if each is not None},
    )
