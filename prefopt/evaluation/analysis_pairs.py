"""Method against method: win rates over prompts and seeds, orders, circles and conflicts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from prefopt.evaluation.analysis_table import Entrants, Pairs, Scores, seed_table
from prefopt.evaluation.numbers import Estimate, OrderNumbers, PairNumbers
from prefopt.evaluation.statistics.consistency import (
    conflicts,
    consistent_share,
    first_slot_rate,
    intransitive_shares,
)
from prefopt.evaluation.statistics.crossed import Spread, crossed_spread
from prefopt.evaluation.statistics.intervals import mean_interval, sign_flip_p, table_interval
from prefopt.evaluation.statistics.multiplicity import holm
from prefopt.evaluation.statistics.pooled import pooled_spreads

_NULL = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Met:
    """What is known of two methods before anything is said of all of them."""

    a: int
    b: int
    tables: tuple[Float[np.ndarray, "_ prompts"], ...]
    """Seeds by prompts. One table if each seed of a met one of b; two if all met all: rows are
    seeds of a, averaged over those of b, and the reverse."""
    by_prompt: Float[np.ndarray, " all_prompts"]
    if_missing_lost: float
    if_missing_won: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Wins of method a against method b."""

    a: str
    b: str
    by_prompt: Float[np.ndarray, " all_prompts"]
    """Mean win on each prompt; NaN if it is missing."""
    if_missing_lost: float
    """Win rate if a had lost all that could not be judged."""
    if_missing_won: float
    win: Estimate
    spread: Spread | None
    """Of the win rate; None of a single prompt."""
    p: float

    def turned(self) -> "Comparison":
        """The same of b against a."""
        low, high = self.win["low"], self.win["high"]
        win = Estimate(
            value=1 - self.win["value"],
            low=None if high is None else 1 - high,
            high=None if low is None else 1 - low,
            n=self.win["n"],
            unit=self.win["unit"],
        )
        return replace(
            self,
            a=self.b,
            b=self.a,
            by_prompt=1 - self.by_prompt,
            if_missing_lost=1 - self.if_missing_won,
            if_missing_won=1 - self.if_missing_lost,
            win=win,
        )


def comparisons(
    pairs: Pairs, entrants: Entrants, num_prompts: int, sanity: Collection[str], seed: int
) -> list[Comparison]:
    """Every two methods that were compared on a prompt at least.

    Variance between seeds is pooled over those without sanity rows, and over those with one.
    """
    every = (
        _met(pairs, entrants, a, b, num_prompts)
        for a, b in combinations(range(len(entrants.methods)), 2)
    )
    met = [each for each in every if each is not None]
    names = [(entrants.methods[each.a], entrants.methods[each.b]) for each in met]
    spreads: list[Spread | None] = [None] * len(met)
    for family in (True, False):
        members = [
            index
            for index, each in enumerate(met)
            if each.tables[0].shape[1] > 1 and sanity_free(names[index], sanity) is family
        ]
        own = [crossed_spread(*met[index].tables) for index in members]
        sides = [_sides(met[index], entrants) for index in members]
        for index, spread in zip(members, pooled_spreads(own, sides), strict=True):
            spreads[index] = spread
    return [_comparison(*each, seed) for each in zip(met, names, spreads, strict=True)]


def sanity_free(names: tuple[str, str], sanity: Collection[str]) -> bool:
    """Whether neither of two methods is a sanity row."""
    return not any(name in sanity for name in names)


def _sides(met: _Met, entrants: Entrants) -> frozenset[str]:
    """The methods whose seeds make the comparison vary."""
    if max(map(len, met.tables)) == 1:
        return frozenset()
    return frozenset(
        entrants.methods[each] for each in (met.a, met.b) if entrants.num_seeds[each] > 1
    )


def _comparison(met: _Met, names: tuple[str, str], spread: Spread | None, seed: int) -> Comparison:
    means = met.tables[0].mean(axis=0)
    p = sign_flip_p(means, _NULL, seed)
    if spread is not None and len(spread.parts) > 1:
        p = max(p, spread.p(float(means.mean()) - _NULL))
    return Comparison(
        a=names[0],
        b=names[1],
        by_prompt=met.by_prompt,
        if_missing_lost=met.if_missing_lost,
        if_missing_won=met.if_missing_won,
        win=table_interval(*met.tables, unit="prompts", share=True, seed=seed, spread=spread),
        spread=spread,
        p=p,
    )


def _met(pairs: Pairs, entrants: Entrants, a: int, b: int, num_prompts: int) -> _Met | None:
    methods = np.stack([entrants.method[pairs.a], entrants.method[pairs.b]])
    # Systems are numbered method by method, so a row's a belongs to the earlier method.
    asked = np.flatnonzero((methods[0] == a) & (methods[1] == b))
    rows = asked[pairs.is_whole[asked]]
    if len(rows) == 0:
        return None
    tables = _tables(
        entrants.seed[pairs.a[rows]],
        entrants.seed[pairs.b[rows]],
        pairs.prompt[rows],
        pairs.win[rows],
        num_prompts,
    )
    kept = np.flatnonzero(~np.isnan(np.concatenate(tables)).any(axis=0))
    if len(kept) == 0:
        return None
    by_prompt = np.full(num_prompts, np.nan)
    by_prompt[kept] = tables[0][:, kept].mean(axis=0)
    low, high = (
        float(np.nanmean(seed_table(asked * 0, pairs.prompt[asked], filled, num_prompts)))
        for filled in (np.nan_to_num(pairs.win[asked], nan=missing) for missing in (0.0, 1.0))
    )
    return _Met(
        a=a,
        b=b,
        tables=tuple(table[:, kept] for table in tables),
        by_prompt=by_prompt,
        if_missing_lost=low,
        if_missing_won=high,
    )


def _tables(
    seed_a: Int[np.ndarray, " rows"],
    seed_b: Int[np.ndarray, " rows"],
    prompt: Int[np.ndarray, " rows"],
    wins: Float[np.ndarray, " rows"],
    num_prompts: int,
) -> tuple[Float[np.ndarray, "_ {num_prompts}"], ...]:
    """One table if each seed of the one met one of the other, or there is one seed; else two."""
    met, which = np.unique(np.stack([seed_a, seed_b]), axis=1, return_inverse=True)
    if met.shape[1] == max(len(np.unique(seeds)) for seeds in met):
        return (seed_table(which, prompt, wins, num_prompts),)
    return tuple(seed_table(seeds, prompt, wins, num_prompts) for seeds in (seed_a, seed_b))


def corrected(made: Sequence[Comparison], sanity: Collection[str]) -> list[float]:
    """Holm's p-values of comparisons.

    Those with a sanity row are a family of their own, as they are no question about the candidates
    and must not cost them power.
    """
    is_sane = [sanity_free((each.a, each.b), sanity) for each in made]
    adjusted = [1.0] * len(made)
    for family in (True, False):
        members = [index for index, sane in enumerate(is_sane) if sane is family]
        for index, p in zip(members, holm([made[i].p for i in members]), strict=True):
            adjusted[index] = p
    return adjusted


def win_matrix(made: Sequence[Comparison], sanity: Collection[str]) -> list[PairNumbers]:
    """Every two methods once."""
    return [
        PairNumbers(a=each.a, b=each.b, win=each.win, p=each.p, p_holm=p_holm)
        for each, p_holm in zip(made, corrected(made, sanity), strict=True)
    ]


def order_numbers(pairs: Pairs, seed: int) -> OrderNumbers | None:
    """What the order does, of pairs that were judged in both; None if there is none."""
    rows = np.flatnonzero(pairs.is_whole)
    if len(rows) == 0:
        return None
    prompt = pairs.prompt[rows]
    forward, backward = pairs.verdicts[rows].astype(int).T
    masses = pairs.label_mass[rows].ravel()
    is_told = ~np.isnan(masses)
    return OrderNumbers(
        first_slot_rate=first_slot_rate(pairs.wins[rows].ravel(), prompt.repeat(2), seed),
        consistent_share=consistent_share(forward, backward, prompt, seed),
        label_mass=mean_interval(
            masses[is_told],
            "prompts",
            clusters=prompt.repeat(2)[is_told],
            share=True,
            seed=seed,
        )
        if is_told.any()
        else None,
    )


def intransitive_share(
    made: Sequence[Comparison], methods: Sequence[str], num_prompts: int, seed: int
) -> Estimate | None:
    """Of triples of methods on a prompt; None if no triple was judged whole."""
    wins = np.full((len(methods), len(methods), num_prompts), np.nan)
    for each in made:
        a, b = methods.index(each.a), methods.index(each.b)
        wins[a, b], wins[b, a] = each.by_prompt, 1 - each.by_prompt
    shares = intransitive_shares(wins)
    shares = shares[~np.isnan(shares)]
    return mean_interval(shares, "prompts", share=True, seed=seed) if len(shares) else None


def conflict_share(
    pairs: Pairs, scores: Scores, means: Float[np.ndarray, " scores"], seed: int
) -> Estimate | None:
    """Of pairs of answers with a win and two scores; None if there is none."""
    keys = zip(scores.system, scores.prompt, scores.turn, scores.sample, strict=True)
    score_of = {key: mean for key, mean in zip(keys, means, strict=True)}
    rows, differences = [], []
    for row in np.flatnonzero(pairs.is_whole):
        where = (pairs.prompt[row], pairs.turn[row], pairs.sample[row])
        of_a, of_b = (score_of.get((system[row], *where)) for system in (pairs.a, pairs.b))
        if of_a is not None and of_b is not None:
            rows.append(row)
            differences.append(of_a - of_b)
    if not rows:
        return None
    are = conflicts(pairs.win[rows], np.array(differences)).astype(float)
    return mean_interval(are, "prompts", clusters=pairs.prompt[rows], share=True, seed=seed)
