"""Win rates at equal lengths.

LC (prefopt): the Bradley-Terry model of the two systems alone, with the covariates of `strengths`,
asked for the win rate at equal lengths and slots: sigmoid(strength). The form is AlpacaEval's
(Dubois et al., 2024, arxiv.org/abs/2404.04475) without its difficulty of instructions, which is
known for its own 805 prompts only, and without its penalty. Since it is fitted, its interval has to
refit: the model is fitted anew to prompts that are drawn with replacement. AlpacaEval's own
`lc_standard_error` does not, and is 2 to 3 times too small.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.statistics.battles import Battles, NotEstimableError
from prefopt.evaluation.statistics.intervals import unit_of
from prefopt.evaluation.statistics.strengths import (
    LENGTH,
    SLOT,
    Strengths,
    design_of,
    fit_strengths,
)

_NUM_RESAMPLES = 2000
_BATCH_CELLS = 400_000
_NUM_STEPS = 6
_RIDGE = 1e-6
_LARGEST_STEP = 2.0


def length_controlled_win(
    battles: Battles, a: str, b: str, *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Win rate of a against b at equal lengths and slots, from the battles between the two.

    With one training seed the interval is of a bootstrap over prompts that refits; with several it
    is the model's own, which adds the variance between seeds.

    Raises:
        NotEstimableError: if one of the two wins every battle, or if their lengths differ alike on
            all prompts: then what is due to length cannot be told from what is not.
    """
    pair = battles.among((a, b))
    if len(pair) == 0:
        raise NotEstimableError(f"No length-controlled rate of {a}: never compared with {b}.")
    used = np.unique(pair.prompt)
    pair = _renumbered(pair, used)
    fitted = fit_strengths(pair, b)
    if LENGTH in fitted.left_out and np.ptp(pair.length_difference) > 0:
        raise NotEstimableError(
            f"No length-controlled rate of {a} against {b}: {fitted.left_out[LENGTH]}."
        )
    if fitted.influence.shape[1] > 1:
        return fitted.win_against_baseline(a)
    wins = expit(_refitted(pair, fitted, seed))
    tail = (1 - level) / 2
    low, high = np.quantile(wins, [tail, 1 - tail])
    value = float(expit(fitted.coefficients[0]))
    unit = unit_of("prompts", 1)
    return Estimate(value=value, low=float(low), high=float(high), n=len(used), unit=unit)


def _renumbered(battles: Battles, used: np.ndarray) -> Battles:
    """The same battles with prompts numbered from 0 without gaps."""
    return Battles(
        names=battles.names,
        first=battles.first,
        second=battles.second,
        win=battles.win,
        length_difference=battles.length_difference,
        prompt=np.searchsorted(used, battles.prompt),
        seed=battles.seed,
    )


def _refitted(battles: Battles, fitted: Strengths, seed: int) -> Float[np.ndarray, " resamples"]:
    """Strength of the first name in resamples of prompts.

    All resamples take Newton steps together from the full fit. The few without a finite fit stop
    after some steps at a strength far out, where the win rate is that of the limit.
    """
    _, design, _ = design_of(battles, fitted.baseline, (LENGTH, SLOT))
    num_prompts = fitted.influence.shape[2]
    rng = np.random.default_rng(seed)
    batch = max(1, _BATCH_CELLS // len(battles))
    strengths = []
    for start in range(0, _NUM_RESAMPLES, batch):
        size = min(batch, _NUM_RESAMPLES - start)
        counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=size)
        weights = counts[:, battles.prompt].astype(float)
        strengths.append(_newton(design, battles.win, weights, fitted.coefficients)[:, 0])
    return np.concatenate(strengths)


def _newton(
    design: Float[np.ndarray, "battles columns"],
    wins: Float[np.ndarray, " battles"],
    weights: Float[np.ndarray, "resamples battles"],
    start: Float[np.ndarray, " columns"],
) -> Float[np.ndarray, "resamples columns"]:
    coefficients = np.tile(start, (len(weights), 1))
    size = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    for _ in range(_NUM_STEPS):
        means = expit(coefficients @ design.T)
        gradient = (weights * (wins - means)) @ design - _RIDGE * coefficients
        information = ((weights * means * (1 - means)) @ products).reshape(-1, size, size)
        information += _RIDGE * np.eye(size)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        coefficients += np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        if np.abs(step).max() < 1e-6:
            break
    return coefficients
