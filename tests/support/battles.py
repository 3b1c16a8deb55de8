"""Battles for tests: by hand, and from a world whose strengths are known."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from prefopt.evaluation.statistics.battles import Battles


def battles_from(
    rows: Sequence[tuple[str, str, float]], *, names: Sequence[str] = (), lengths=None, prompts=None
) -> Battles:
    """Rows are (first, second, win); each is on a prompt of its own unless prompts are given."""
    names = tuple(names) or tuple(sorted({name for row in rows for name in row[:2]}))
    return Battles(
        names=names,
        first=np.array([names.index(first) for first, _, _ in rows]),
        second=np.array([names.index(second) for _, second, _ in rows]),
        win=np.array([float(win) for _, _, win in rows]),
        length_difference=np.zeros(len(rows)) if lengths is None else np.asarray(lengths, float),
        prompt=np.arange(len(rows)) if prompts is None else np.asarray(prompts),
        seed=np.zeros(len(rows), dtype=int),
    )


def simulated(
    rng: np.random.Generator,
    strengths: dict[str, float],
    num_prompts: int,
    *,
    length_effect: float = 0.0,
    slot_effect: float = 0.0,
    by_prompt: float = 0.0,
    longer: dict[str, float] | None = None,
    num_seeds: int = 1,
    by_seed: float = 0.0,
    is_soft: bool = False,
) -> Battles:
    """All pairs in both orders on every prompt, seed k with seed k.

    Args:
        rng: source of all that is random.
        strengths: in logits.
        num_prompts: how many.
        length_effect: logit per standard deviation of the length difference, linear up to tanh.
        slot_effect: logit of standing first.
        by_prompt: sd of how much a system's strength differs from prompt to prompt.
        longer: system -> mean number of characters above 1000.
        num_seeds: training seeds of each system.
        by_seed: sd of how much a system's strength differs from seed to seed.
        is_soft: whether the judge tells its probabilities or draws a winner.
    """
    names = tuple(strengths)
    size = (num_seeds, len(names), num_prompts)
    mean_length = 1000 + np.array([(longer or {}).get(name, 0.0) for name in names])
    length = mean_length[:, None] + 200 * rng.standard_normal(size)
    strength = np.array(list(strengths.values()))[:, None] + by_prompt * rng.standard_normal(size)
    strength = strength + by_seed * rng.standard_normal((num_seeds, len(names), 1))
    parts = [
        (first, second, seed)
        for first in range(len(names))
        for second in range(len(names))
        for seed in range(num_seeds)
        if first != second
    ]
    difference = np.array([length[s, i] - length[s, j] for i, j, s in parts])
    margin = np.array([strength[s, i] - strength[s, j] for i, j, s in parts])
    squashed = np.tanh(difference / difference.std())
    chance = expit(margin + length_effect * squashed + slot_effect)
    win = chance if is_soft else (rng.random(chance.shape) < chance).astype(float)
    first, second, seed = (np.repeat(column, num_prompts) for column in np.array(parts).T)
    return Battles(
        names=names,
        first=first,
        second=second,
        win=win.ravel(),
        length_difference=difference.ravel(),
        prompt=np.tile(np.arange(num_prompts), len(parts)),
        seed=seed,
    )
