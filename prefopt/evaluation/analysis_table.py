"""Judgments as columns: which systems, on which prompt, and who won in which order.

Both orders of a pair are one row, and its win is the average over the two; a pair that was judged
in one order only has none. A method's systems are its training seeds, in the order given.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.numbers import Coverage
from prefopt.evaluation.statistics.consistency import verdicts
from prefopt.evaluation.types import Judgment


@dataclass(frozen=True, slots=True)
class Entrants:
    """Methods, and of which method and seed each system is."""

    methods: tuple[str, ...]
    systems: tuple[str, ...]
    method: Int[np.ndarray, " systems"]
    seed: Int[np.ndarray, " systems"]
    """Place among the systems of its method, from 0."""
    num_seeds: Int[np.ndarray, " methods"]

    @classmethod
    def of(cls, methods: Mapping[str, Sequence[str]], baseline: str) -> "Entrants":
        """Check and number them.

        Raises:
            UserError: if the baseline is no method, a method has no system, a system belongs to
                two, or methods have different numbers of seeds above one.
        """
        if baseline not in methods:
            raise UserError(
                f"The baseline {baseline} is none of the methods. {did_you_mean(baseline, methods)}"
            )
        systems = [system for each in methods.values() for system in each]
        for system in systems:
            if systems.count(system) > 1:
                raise UserError(f"System {system} is listed twice. Give each system one method.")
        counts = {name: len(each) for name, each in methods.items()}
        for name, count in counts.items():
            if count == 0:
                raise UserError(f"Method {name} has no system. Give it one per training seed.")
        several = [name for name, count in counts.items() if count > 1]
        for name in several:
            if counts[name] != counts[several[0]]:
                raise UserError(
                    f"Method {several[0]} has {counts[several[0]]} seeds and {name} has "
                    f"{counts[name]}. Give all the same number, or one."
                )
        return cls(
            methods=tuple(methods),
            systems=tuple(systems),
            method=np.repeat(np.arange(len(methods)), list(counts.values())),
            seed=np.concatenate([np.arange(count) for count in counts.values()]),
            num_seeds=np.array(list(counts.values())),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """One row per two systems, prompt, turn and sample that a judge was asked about.

    Forward is with a shown first, backward with b. What is missing is NaN.
    """

    a: Int[np.ndarray, " rows"]
    """Index of a system; below b's."""
    b: Int[np.ndarray, " rows"]
    prompt: Int[np.ndarray, " rows"]
    turn: Int[np.ndarray, " rows"]
    sample: Int[np.ndarray, " rows"]
    wins: Float[np.ndarray, "rows 2"]
    """Of the one shown first, forward and backward."""
    verdicts: Float[np.ndarray, "rows 2"]
    """The same as a decision: 1, -1 for the second, 0 for a tie."""
    label_mass: Float[np.ndarray, "rows 2"]

    @property
    def is_whole(self) -> Bool[np.ndarray, " rows"]:
        """Whether both orders were judged."""
        return np.asarray(~np.isnan(self.wins).any(axis=1))

    @property
    def win(self) -> Float[np.ndarray, " rows"]:
        """Of a, averaged over both orders."""
        return np.asarray((self.wins[:, 0] + 1 - self.wins[:, 1]) / 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """One row per ok judgment of a single answer."""

    system: Int[np.ndarray, " rows"]
    prompt: Int[np.ndarray, " rows"]
    turn: Int[np.ndarray, " rows"]
    sample: Int[np.ndarray, " rows"]
    levels: tuple[tuple[float, ...], ...]
    probs: tuple[tuple[float, ...], ...]


def last_of_each(
    judgments: Iterable[Judgment], entrants: Entrants, prompts: Sequence[str]
) -> list[Judgment]:
    """The last judgment of each question about known systems and prompts.

    A question that failed and was asked again stands twice in a file. Judgments about other systems
    or prompts are left aside.
    """
    systems, known = set(entrants.systems), set(prompts)
    last: dict[tuple[object, ...], Judgment] = {}
    for each in judgments:
        others = {each.system} if each.opponent is None else {each.system, each.opponent}
        if others <= systems and each.prompt_id in known:
            question = (each.prompt_id, each.turn, each.sample, each.system, each.opponent)
            last[question] = each
    return list(last.values())


def coverage_of(judgments: Sequence[Judgment]) -> Coverage:
    """How many of the questions were answered; a share of 0 if none was asked."""
    by_status: dict[str, int] = {}
    for each in judgments:
        by_status[each.reply.status] = by_status.get(each.reply.status, 0) + 1
    num_ok = by_status.get("ok", 0)
    return Coverage(
        num_asked=len(judgments),
        num_ok=num_ok,
        share=num_ok / len(judgments) if judgments else 0.0,
        by_status=by_status,
    )


def pairs_of(judgments: Iterable[Judgment], entrants: Entrants, prompts: Sequence[str]) -> Pairs:
    """Pair judgments as rows; a system against itself is left aside."""
    system_index = {name: index for index, name in enumerate(entrants.systems)}
    prompt_index = {prompt: index for index, prompt in enumerate(prompts)}
    row_of: dict[tuple[int, ...], int] = {}
    places: list[tuple[int, int]] = []
    probs: list[tuple[float, ...]] = []
    masses: list[float] = []
    for each in judgments:
        if each.opponent is None or each.opponent == each.system:
            continue
        first, second = system_index[each.system], system_index[each.opponent]
        a, b = min(first, second), max(first, second)
        key = (a, b, prompt_index[each.prompt_id], each.turn, each.sample)
        row = row_of.setdefault(key, len(row_of))
        if each.is_ok:
            places.append((row, int(first != a)))
            probs.append(each.reply.probs)
            mass = each.reply.label_mass
            masses.append(np.nan if mass is None else mass)
    keys = np.array(list(row_of), dtype=int).reshape(-1, 5)
    at = tuple(np.array(places, dtype=int).reshape(-1, 2).T)
    replies = np.array(probs, dtype=float).reshape(-1, 3)
    blank = np.full((len(keys), 2), np.nan)
    wins, decided, label_mass = blank, blank.copy(), blank.copy()
    wins[at] = replies[:, 0] + replies[:, 2] / 2
    decided[at] = verdicts(replies)
    label_mass[at] = masses
    of_a, of_b, prompt, turn, sample = keys.T
    return Pairs(
        a=of_a,
        b=of_b,
        prompt=prompt,
        turn=turn,
        sample=sample,
        wins=wins,
        verdicts=decided,
        label_mass=label_mass,
    )


def scores_of(judgments: Iterable[Judgment], entrants: Entrants, prompts: Sequence[str]) -> Scores:
    """Ok score judgments as rows."""
    system_index = {name: index for index, name in enumerate(entrants.systems)}
    prompt_index = {prompt: index for index, prompt in enumerate(prompts)}
    kept = [each for each in judgments if each.opponent is None and each.is_ok]
    keys = [
        (system_index[each.system], prompt_index[each.prompt_id], each.turn, each.sample)
        for each in kept
    ]
    system, prompt, turn, sample = np.array(keys, dtype=int).reshape(-1, 4).T
    return Scores(
        system=system,
        prompt=prompt,
        turn=turn,
        sample=sample,
        levels=tuple(each.levels for each in kept),
        probs=tuple(each.reply.probs for each in kept),
    )


def seed_table(
    seed: Int[np.ndarray, " rows"],
    prompt: Int[np.ndarray, " rows"],
    values: Float[np.ndarray, " rows"],
    num_prompts: int,
) -> Float[np.ndarray, "seeds {num_prompts}"]:
    """Mean per seed and prompt, NaN where there is none; one row per seed that occurs."""
    seeds, row = np.unique(seed, return_inverse=True)
    cell, size = row * num_prompts + prompt, len(seeds) * num_prompts
    count = np.bincount(cell, minlength=size)
    total = np.bincount(cell, weights=values, minlength=size)
    means = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return np.asarray(means.reshape(len(seeds), num_prompts))


def complete(table: Float[np.ndarray, "seeds prompts"]) -> Float[np.ndarray, "seeds _"]:
    """The columns in which every seed has a value."""
    return table[:, ~np.isnan(table).any(axis=0)]
