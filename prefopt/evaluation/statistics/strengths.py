"""Bradley-Terry strengths as a generalised linear model, with length and order as covariates.

    logit P(first is better) = strength[first] - strength[second]
                               + length_effect * tanh((length_first - length_second) / sd)
                               + slot_effect

fitted to soft wins by a binomial GLM (quasi-likelihood); the baseline's strength is 0. `sd` is the
standard deviation of the length difference over all showings. The slot effect is the advantage of
standing first. Errors are robust and clustered by prompt: each prompt's influence on an estimate is
the inverse information times its score, and their variance is the sandwich. With several seeds the
influences are a table of seeds by prompts, and `crossed_spread` adds the variance between seeds.

Strengths are marginal: where prompts differ in which answer is better, they lie nearer to 0 than
the strengths on any one prompt.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.special import expit
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.statistics.battles import (
    Battles,
    NotEstimableError,
    check_comparable,
    is_told_apart,
)
from prefopt.evaluation.statistics.crossed import Spread, crossed_spread
from prefopt.evaluation.statistics.intervals import unit_of
from prefopt.evaluation.statistics.multiplicity import simultaneous_level
from prefopt.evaluation.statistics.pooled import pooled_spreads

LENGTH, SLOT = "length", "slot"
_LARGEST_LOGIT = 12.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """Place among all, 1 for the best, and the places that the intervals allow."""

    rank: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Strengths:
    """A fitted model."""

    names: tuple[str, ...]
    baseline: str
    columns: tuple[str, ...]
    """Of the design: all names but the baseline, then the covariates that could be told."""
    coefficients: Float[np.ndarray, " columns"]
    influence: Float[np.ndarray, "columns seeds prompts"]
    """Coefficient plus what one seed on one prompt adds to it; the mean is the coefficient."""
    left_out: dict[str, str]
    """Covariate -> why the data cannot tell its effect."""

    def contrast(self, better: str, worse: str) -> tuple[float, Spread]:
        """Strength of one above another, in logits, and how far off it may be."""
        weights = self._weights(better) - self._weights(worse)
        return float(weights @ self.coefficients), crossed_spread(
            np.tensordot(weights, self.influence, axes=1)
        )

    def logit(self, name: str) -> Estimate:
        """Strength above the baseline; that of the baseline is 0 and has no interval."""
        if name == self.baseline:
            return self._estimate(0.0, None)
        value, spread = self.contrast(name, self.baseline)
        return self._estimate(value, spread.half_width())

    def win_against_baseline(self, name: str) -> Estimate:
        """Expected win rate against the baseline at equal length and slot."""
        logit = self.logit(name)
        value, low, high = (
            None if each is None else float(expit(each))
            for each in (logit["value"], logit["low"], logit["high"])
        )
        assert value is not None
        return Estimate(value=value, low=low, high=high, n=logit["n"], unit=logit["unit"])

    def effect(self, covariate: str) -> Estimate | None:
        """Effect of `LENGTH` or `SLOT`, in logits; None if it was left out."""
        if covariate not in self.columns[len(self.names) - 1 :]:
            return None
        index = len(self.names) - 1 + self.columns[len(self.names) - 1 :].index(covariate)
        spread = crossed_spread(self.influence[index])
        return self._estimate(float(self.coefficients[index]), spread.half_width())

    def covariance(self) -> Float[np.ndarray, "columns columns"]:
        """Cluster-robust covariance over prompts, seeds taken as they are."""
        per_prompt = self.influence.mean(axis=1)
        return np.asarray(np.atleast_2d(np.cov(per_prompt)) / per_prompt.shape[1])

    def ranks(self, level: float = 0.95) -> dict[str, Rank]:
        """Ranks with bounds that hold for all at once.

        A name is behind another one for sure if the interval of their difference leaves out 0, at
        Bonferroni's level over all differences. With several seeds the variance between them is
        pooled, as of win rates.
        """
        pairs = list(combinations(self.names, 2))
        values, spreads = zip(*(self.contrast(*pair) for pair in pairs), strict=True)
        if self.influence.shape[1] > 1:
            spreads = tuple(pooled_spreads(spreads, [frozenset(pair) for pair in pairs]))
        each = simultaneous_level(len(pairs), level)
        num_better = dict.fromkeys(self.names, 0)
        num_surely_better = dict.fromkeys(self.names, 0)
        num_surely_worse = dict.fromkeys(self.names, 0)
        for pair, value, spread in zip(pairs, values, spreads, strict=True):
            better, worse = pair if value > 0 else pair[::-1]
            num_better[worse] += value != 0
            if abs(value) > spread.half_width(each):
                num_surely_better[worse] += 1
                num_surely_worse[better] += 1
        return {
            name: Rank(
                rank=1 + num_better[name],
                low=1 + num_surely_better[name],
                high=len(self.names) - num_surely_worse[name],
            )
            for name in self.names
        }

    def _weights(self, name: str) -> Float[np.ndarray, " columns"]:
        weights = np.zeros(len(self.columns))
        if name != self.baseline:
            weights[self.columns.index(name)] = 1.0
        return weights

    def _estimate(self, value: float, half: float | None) -> Estimate:
        num_seeds, num_prompts = self.influence.shape[1:]
        return Estimate(
            value=value,
            low=None if half is None else value - half,
            high=None if half is None else value + half,
            n=num_prompts,
            unit=unit_of("prompts", num_seeds),
        )


def fit_strengths(
    battles: Battles, baseline: str, covariates: Sequence[str] = (LENGTH, SLOT)
) -> Strengths:
    """Fit the model.

    A covariate whose effect the data cannot tell (lengths that never differ, or differ as the
    systems do; one order only) is left out, and `left_out` says why.

    Args:
        battles: at least 2 prompts.
        baseline: the name that has strength 0.
        covariates: of `LENGTH` and `SLOT`.

    Raises:
        NotEstimableError: if a name always wins, always loses or is not linked with the others, or
            if length or slot alone decide every battle.
    """
    check_comparable(battles, baseline)
    num_prompts = int(battles.prompt.max()) + 1
    if num_prompts < 2:
        raise NotEstimableError("One prompt tells no strengths. Judge at least 2 prompts.")
    columns, design, left_out = design_of(battles, baseline, covariates)
    coefficients = _fit(design, battles.win)
    influence = _influence(design, coefficients, battles, num_prompts)
    return Strengths(
        names=battles.names,
        baseline=baseline,
        columns=columns,
        coefficients=coefficients,
        influence=influence,
        left_out=left_out,
    )


def design_of(
    battles: Battles, baseline: str, covariates: Sequence[str]
) -> tuple[tuple[str, ...], Float[np.ndarray, "battles columns"], dict[str, str]]:
    """Names of the columns, the design, and covariate -> why it was left out."""
    others = [name for name in battles.names if name != baseline]
    indices = np.array([battles.names.index(name) for name in others], dtype=int)
    design = (battles.first[:, None] == indices).astype(float)
    design -= battles.second[:, None] == indices
    columns, left_out = list(others), dict[str, str]()
    for covariate in covariates:
        column = _slots(battles) if covariate == SLOT else squashed_lengths(battles)
        if is_told_apart(column, design):
            design = np.column_stack([design, column])
            columns.append(covariate)
        else:
            left_out[covariate] = _WHY_LEFT_OUT[covariate]
    return tuple(columns), design, left_out


_WHY_LEFT_OUT = {
    LENGTH: "lengths differ on no prompt other than the systems do, so no effect of length is told",
    SLOT: "no pair was shown in both orders, so no effect of the slot is told",
}


def squashed_lengths(battles: Battles) -> Float[np.ndarray, " battles"]:
    """Tanh of the length difference in standard deviations; 0 if it never varies."""
    sd = float(battles.length_difference.std())
    if sd == 0:
        return np.zeros(len(battles))
    return np.asarray(np.tanh(battles.length_difference / sd))


def _slots(battles: Battles) -> Float[np.ndarray, " battles"]:
    return np.ones(len(battles))


def _fit(
    design: Float[np.ndarray, "battles columns"], wins: Float[np.ndarray, " battles"]
) -> Float[np.ndarray, " columns"]:
    with warnings.catch_warnings():
        # Separation shows in the size of the coefficients, and is told below.
        warnings.simplefilter("ignore")
        fitted = GLM(wins, design, family=Binomial()).fit()
    coefficients = np.asarray(fitted.params, dtype=float)
    if not fitted.converged or not (np.abs(coefficients) < _LARGEST_LOGIT).all():
        raise NotEstimableError(
            "No finite strengths: length or slot decide every battle. Look at the raw win rates, "
            "which average over both orders."
        )
    return coefficients


def _influence(
    design: Float[np.ndarray, "battles columns"],
    coefficients: Float[np.ndarray, " columns"],
    battles: Battles,
    num_prompts: int,
) -> Float[np.ndarray, "columns seeds prompts"]:
    """Coefficients plus num_seeds * num_prompts times the influence of each seed on each prompt."""
    num_seeds = max(1, int(battles.seed.max()) + 1)
    fitted = expit(design @ coefficients)
    information = design.T @ (design * (fitted * (1 - fitted))[:, None])
    per_battle = (design * (battles.win - fitted)[:, None]) @ np.linalg.inv(information)
    sums = np.zeros((design.shape[1], num_seeds, num_prompts))
    for seed in range(num_seeds):
        share = np.where(battles.seed == seed, 1.0, (battles.seed < 0) / num_seeds)
        np.add.at(sums[:, seed].T, battles.prompt, per_battle * share[:, None])
    return coefficients[:, None, None] + num_seeds * num_prompts * sums
