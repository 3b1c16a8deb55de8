"""AlpacaEval's own length-controlled win rate, version 1, where its data is given.

    logit P(model wins) = phi * tanh(delta / sd(delta)) + psi * difficulty + theta

with delta the baseline's characters less the model's. The fit minimises
|phi| + |psi| + |theta| + C * sum of weighted log losses, over the 805 answers of the model with
weight 1 and those of two gamed baselines with weight 0.1, for which theta is off. C is one of ten
from 1e-4 to 1e4, by log loss in five-fold cross-validation. The rate is the mean over prompts of
the probability at equal lengths.

The objective is convex and is solved to convergence here; AlpacaEval solves it by liblinear, which
stops a little early: the two agree to about 1e-4 in coefficients. The difficulties and the rows of
gamed baselines come from AlpacaEval's `df_gamed.csv`; they are about its own prompts, in its own
order, against its own baseline, and nothing else.

Paper: Dubois et al., Length-Controlled AlpacaEval, 2024, arxiv.org/abs/2404.04475.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from prefopt.errors import UserError
from prefopt.evaluation.numbers import Estimate

_GAMED_WEIGHT = 0.2 / 2
_NUM_FOLDS = 5
_NUM_RESAMPLES = 200
_MAX_STEPS, _MAX_SWEEPS, _TOLERANCE, _RIDGE = 50, 1000, 1e-10, 1e-12
_PENALTIES = np.logspace(-4, 4, 10)
_COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gamed:
    """What `df_gamed.csv` holds: answers of baselines that were told to be wordy or terse."""

    wins: Float[np.ndarray, " rows"]
    scaled_delta: Float[np.ndarray, " rows"]
    """Length difference in standard deviations."""
    row_difficulty: Float[np.ndarray, " rows"]
    difficulty: Float[np.ndarray, " prompts"]
    """Of each prompt, in AlpacaEval's order."""


def read_gamed(path: Path) -> Gamed:
    """Read AlpacaEval's `df_gamed.csv`.

    Raises:
        UserError: if the file is absent, lacks a column or holds something else than numbers.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give AlpacaEval's df_gamed.csv.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise UserError(f"{path}: no column {missing[0]}. Give AlpacaEval's df_gamed.csv.")
    try:
        columns = {name: np.array([float(row[name]) for row in rows]) for name in _COLUMNS[:4]}
    except ValueError as error:
        raise UserError(f"{path}: {error}. Give AlpacaEval's df_gamed.csv.") from None
    _, firsts = np.unique(columns["index"], return_index=True)
    return Gamed(
        wins=columns["preference"],
        scaled_delta=columns["std_delta_len"],
        row_difficulty=columns["instruction_difficulty"],
        difficulty=columns["instruction_difficulty"][firsts],
    )


def official_length_controlled(
    wins: Float[np.ndarray, " prompts"],
    deltas: Float[np.ndarray, " prompts"],
    gamed: Gamed,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """AlpacaEval LC v1, in [0, 1], with a bootstrap over prompts that refits.

    AlpacaEval's own standard error leaves out that the coefficients are estimated. Resamples keep
    C and the gamed baselines, which are a prior.

    Args:
        wins: probability that the model's answer is better than the baseline's, all judged.
        deltas: characters of the baseline's answer less those of the model's.
        gamed: AlpacaEval's data.
        level: of the interval.
        seed: of the bootstrap.

    Raises:
        UserError: if the prompts are not as many as AlpacaEval's, whose order is their identity, or
            lengths do not differ.
    """
    num_prompts = len(wins)
    if num_prompts != len(gamed.difficulty):
        raise UserError(
            f"{num_prompts} judged prompts, but difficulties of {len(gamed.difficulty)}: the "
            f"official rate needs all of AlpacaEval's prompts in its order. Use LC (prefopt)."
        )
    sd = float(deltas.std(ddof=1))
    if sd == 0:
        raise UserError("All answers are as long as the baseline's: there is no length to control.")
    own = np.column_stack([np.tanh(deltas / sd), gamed.difficulty, np.ones(num_prompts)])
    prior = np.column_stack(
        [np.tanh(gamed.scaled_delta), gamed.row_difficulty, np.zeros(len(gamed.wins))]
    )
    design, outcomes = np.concatenate([prior, own]), np.concatenate([gamed.wins, wins])
    weights = np.concatenate([np.full(len(prior), _GAMED_WEIGHT), np.ones(num_prompts)])
    penalty = _chosen_penalty(design, outcomes, weights)

    def rate(counts: Float[np.ndarray, " prompts"]) -> float:
        repeated = weights.copy()
        repeated[len(prior) :] *= counts
        _, psi, theta = _fit(design, outcomes, repeated, penalty)
        return float(np.average(expit(psi * gamed.difficulty + theta), weights=counts))

    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), _NUM_RESAMPLES)
    tail = (1 - level) / 2
    low, high = np.quantile([rate(counts.astype(float)) for counts in draws], [tail, 1 - tail])
    value = rate(np.ones(num_prompts))
    return Estimate(
        value=value, low=float(low), high=float(high), n=num_prompts, unit="prompts, one seed"
    )


def _chosen_penalty(
    design: Float[np.ndarray, "rows columns"],
    outcomes: Float[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
) -> float:
    """The C with the least log loss on folds that were held out; rows take turns in the folds."""
    fold = np.arange(len(outcomes))[::-1] % _NUM_FOLDS
    losses = np.zeros(len(_PENALTIES))
    for held_out in range(_NUM_FOLDS):
        kept, out = fold != held_out, fold == held_out
        for index, penalty in enumerate(_PENALTIES):
            coefficients = _fit(design[kept], outcomes[kept], weights[kept], float(penalty))
            logits = design[out] @ coefficients
            losses[index] += float((weights[out] * _log_losses(logits, outcomes[out])).mean())
    return float(_PENALTIES[losses.argmin()])


def _fit(
    design: Float[np.ndarray, "rows columns"],
    outcomes: Float[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    penalty: float,
) -> Float[np.ndarray, " columns"]:
    """The least of |w| + penalty * weighted log loss, by proximal Newton steps.

    Each step minimises the quadratic model plus |w| by coordinate descent, and is halved until the
    objective falls; three columns need a handful.
    """
    coefficients = np.zeros(design.shape[1])

    def objective(at: np.ndarray) -> float:
        return float(np.abs(at).sum() + penalty * weights @ _log_losses(design @ at, outcomes))

    for _ in range(_MAX_STEPS):
        means = expit(design @ coefficients)
        gradient = penalty * (design.T @ (weights * (means - outcomes)))
        curvature = penalty * (design.T * (weights * means * (1 - means))) @ design
        step = _model_minimum(coefficients, gradient, curvature) - coefficients
        now = objective(coefficients)
        while objective(coefficients + step) > now and np.abs(step).max() > _TOLERANCE:
            step /= 2
        coefficients = coefficients + step
        if np.abs(step).max() <= _TOLERANCE:
            break
    return coefficients


def _model_minimum(
    start: Float[np.ndarray, " columns"],
    gradient: Float[np.ndarray, " columns"],
    curvature: Float[np.ndarray, "columns columns"],
) -> Float[np.ndarray, " columns"]:
    """The least of |w| plus the quadratic model around `start`."""
    at = start.copy()
    for _ in range(_MAX_SWEEPS):
        before = at.copy()
        for j in range(len(at)):
            slope = gradient[j] + curvature[j] @ (at - start) - curvature[j, j] * at[j]
            at[j] = -np.sign(slope) * max(abs(slope) - 1, 0) / (curvature[j, j] + _RIDGE)
        if np.abs(at - before).max() <= _TOLERANCE:
            break
    return at


def _log_losses(
    logits: Float[np.ndarray, " rows"], outcomes: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    return np.asarray(np.logaddexp(0, logits) - outcomes * logits)
