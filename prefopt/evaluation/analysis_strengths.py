"""Bradley-Terry strengths and length-controlled rates of methods, out of rows of pairs."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from prefopt.errors import UserError
from prefopt.evaluation.analysis_table import Entrants, Pairs
from prefopt.evaluation.numbers import Estimate, Strength
from prefopt.evaluation.statistics.battles import (
    Battles,
    NotEstimableError,
    comparable,
    why_not,
)
from prefopt.evaluation.statistics.length_control import length_controlled_win
from prefopt.evaluation.statistics.strengths import Strengths, fit_strengths
from prefopt.evaluation.types import Answer


def battles_of(
    pairs: Pairs,
    entrants: Entrants,
    answers: Mapping[str, Sequence[Answer]],
    prompts: Sequence[str],
) -> Battles:
    """Showings between methods: both orders of whole pairs, seed k with seed k only.

    The length is that of the turn that was judged.

    Raises:
        UserError: if an answer that was judged is not there.
    """
    methods = np.stack([entrants.method[pairs.a], entrants.method[pairs.b]])
    seeds = np.stack([entrants.seed[pairs.a], entrants.seed[pairs.b]])
    has_several = entrants.num_seeds[methods] > 1
    meets_its_own = (seeds[0] == seeds[1]) | ~has_several.all(axis=0)
    rows = np.flatnonzero(pairs.is_whole & (methods[0] != methods[1]) & meets_its_own)
    lengths = _lengths(pairs, rows, entrants, answers, prompts)
    difference = lengths[:, 0] - lengths[:, 1]
    seed = np.where(has_several, seeds, -1).max(axis=0)[rows]
    a, b = methods[:, rows]
    return Battles(
        names=entrants.methods,
        first=np.concatenate([a, b]),
        second=np.concatenate([b, a]),
        win=pairs.wins[rows].T.ravel(),
        length_difference=np.concatenate([difference, -difference]),
        prompt=np.tile(pairs.prompt[rows], 2),
        seed=np.tile(seed, 2),
    )


def strengths(
    battles: Battles, baseline: str, sanity: Collection[str], notes: list[str]
) -> Strengths | None:
    """The model of the baseline and all candidates whose strength can be told.

    None if there is no such candidate. What is left out is added to the notes.
    """
    wanted = tuple(name for name in battles.names if name not in sanity)
    among = battles.among(wanted)
    if len(among) == 0:
        return None
    known = comparable(among, baseline)
    notes += [
        f"Strengths leave out {name}: {why_not(among, name)}."
        for name in wanted
        if name not in known and name != baseline
    ]
    if len(known) < 2:
        notes.append("No strengths: no candidate has one that is finite.")
        return None
    try:
        fitted = fit_strengths(among.among(known), baseline)
    except NotEstimableError as error:
        notes.append(str(error))
        return None
    notes += [f"Strengths without {name}: {why}." for name, why in fitted.left_out.items()]
    return fitted


def strength_rows(fitted: Strengths) -> list[Strength]:
    """One row per method, the strongest first."""
    ranks = fitted.ranks()
    rows = [
        Strength(
            method=name,
            logit=fitted.logit(name),
            win_against_baseline=fitted.win_against_baseline(name),
            rank=ranks[name].rank,
            rank_low=ranks[name].low,
            rank_high=ranks[name].high,
        )
        for name in fitted.names
    ]
    return sorted(rows, key=lambda row: row["rank"])


def length_controlled(
    battles: Battles, a: str, b: str, notes: list[str], seed: int
) -> Estimate | None:
    """LC (prefopt) of a against b; None if it cannot be told, and the notes say why."""
    try:
        return length_controlled_win(battles, a, b, seed=seed)
    except NotEstimableError as error:
        notes.append(str(error))
        return None


def _lengths(
    pairs: Pairs,
    rows: np.ndarray,
    entrants: Entrants,
    answers: Mapping[str, Sequence[Answer]],
    prompts: Sequence[str],
) -> Float[np.ndarray, "rows 2"]:
    """Characters of the turn that was judged, of a and of b."""
    known = {
        (system, answer.prompt_id, answer.sample): answer
        for system in entrants.systems
        for answer in answers.get(system, ())
    }
    lengths = np.zeros((len(rows), 2))
    for place, row in enumerate(rows):
        for side, systems in enumerate((pairs.a, pairs.b)):
            key = (entrants.systems[systems[row]], prompts[pairs.prompt[row]], pairs.sample[row])
            answer = known.get(key)
            if answer is None or len(answer.turns) < pairs.turn[row]:
                raise UserError(
                    f"The judge saw turn {pairs.turn[row]} of an answer of {key[0]} to prompt "
                    f"{key[1]} that is not among its answers. Give the answers that were judged."
                )
            lengths[place, side] = len(answer.turns[pairs.turn[row] - 1])
    return lengths
