"""Which groups form which optimiser step, fixed before training from sizes and a seed alone.

Ranks and micro-batches only split a step's groups, so neither their number nor the token budget
can change what a step learns from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Sources of which every step draws a fixed number of groups, again and again."""

    sources: tuple[int, ...]
    groups_per_step: int


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The groups of every optimiser step of every epoch; a pure function of its fields."""

    records_per_source: tuple[int, ...]
    """Records are numbered through all sources in order."""
    source_weights: tuple[float, ...]
    """Passes over each source per epoch: 0.5 is a random half, anew each epoch; 2 is twice."""
    groups_per_step: int
    """Groups that an optimiser step learns from; an epoch's last step takes what is left."""
    seed: int
    shuffle: bool = True
    """False keeps the order of the data."""
    companions: tuple[Stream, ...] = ()
    """Streams that go along: each step has their groups too. An epoch is one of all other sources,
    and theirs begin whenever they are used up."""

    @property
    def groups_per_epoch(self) -> int:
        """Groups drawn in one epoch, those of companions included."""
        along = sum(stream.groups_per_step for stream in self.companions)
        return len(_order(self, self._leading, 0)) + along * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return -(-len(_order(self, self._leading, 0)) // self.groups_per_step)

    def groups(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Record numbers of step `step` of epoch `epoch`, both counted from 0."""
        order = _order(self, self._leading, epoch)
        leading = order[step * self.groups_per_step : (step + 1) * self.groups_per_step]
        step_of_run = epoch * self.steps_per_epoch + step
        along = [self._companions_groups(stream, step_of_run) for stream in self.companions]
        return np.concatenate([leading, *along])

    @property
    def _leading(self) -> tuple[int, ...]:
        taken = {source for stream in self.companions for source in stream.sources}
        return tuple(i for i in range(len(self.records_per_source)) if i not in taken)

    def _companions_groups(self, stream: Stream, step_of_run: int) -> NDArray[np.int64]:
        """What a stream gives to a step: its own epochs, laid end to end, know no steps."""
        num = stream.groups_per_step
        length = len(_order(self, stream.sources, 0))
        places = [
            divmod(place, length) for place in range(step_of_run * num, (step_of_run + 1) * num)
        ]
        return np.array([_order(self, stream.sources, epoch)[at] for epoch, at in places], np.int64)


@lru_cache(maxsize=8)
def _order(plan: StepPlan, sources: tuple[int, ...], epoch: int) -> NDArray[np.int64]:
    """Record numbers of some sources in the order of their epoch."""
    # The first source tells streams apart; the leading one of a plan without companions has 0.
    generator = np.random.default_rng([plan.seed, epoch, *filter(None, sources[:1])])
    first_records = np.cumsum([0, *plan.records_per_source])
    drawn = []
    for source in sources:
        num_records, weight = plan.records_per_source[source], plan.source_weights[source]
        num_drawn = max(round(num_records * weight), min(num_records, 1))
        whole_passes, rest = divmod(num_drawn, num_records) if num_records else (0, 0)
        records = first_records[source] + np.arange(num_records)
        part = np.sort(generator.choice(records, rest, replace=False)) if rest else records[:0]
        drawn += [*[records] * whole_passes, part]
    order = np.concatenate(drawn)
    return generator.permutation(order) if plan.shuffle else order


@dataclass(frozen=True, slots=True)
class GroupSize:
    """What a group costs when each response is a row of its own."""

    num_rows: int
    longest_row: int
    """Tokens of the prompt and its longest response."""


def split_step(
    sizes: Sequence[GroupSize], *, num_ranks: int, tokens_per_micro_batch: int
) -> list[list[list[int]]]:
    """Positions of a step's groups as [rank][micro-batch][...], every group exactly once.

    Ranks get about the same number of tokens. A micro-batch holds at most the budget of *padded*
    tokens, unless a single group is larger: then it is alone. All ranks have the same number of
    micro-batches, at least one; those of a rank that is short of work are empty.
    """
    by_length = sorted(
        range(len(sizes)), key=lambda i: (-sizes[i].longest_row, -sizes[i].num_rows, i)
    )
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for i in by_length:
        rank = load.index(min(load))
        ranks[rank].append(i)
        load[rank] += sizes[i].num_rows * sizes[i].longest_row
    split = [_pack(groups, sizes, tokens_per_micro_batch) for groups in ranks]
    num_micro_batches = max(1, *map(len, split))
    return [batches + [[]] * (num_micro_batches - len(batches)) for batches in split]


def _pack(groups: Sequence[int], sizes: Sequence[GroupSize], budget: int) -> list[list[int]]:
    """Micro-batches of groups that come longest first, so that the first sets the row length."""
    batches: list[list[int]] = []
    num_rows, longest = 0, 0
    for i in groups:
        if batches and (num_rows + sizes[i].num_rows) * longest <= budget:
            batches[-1].append(i)
            num_rows += sizes[i].num_rows
        else:
            batches.append([i])
            num_rows, longest = sizes[i].num_rows, sizes[i].longest_row
    return batches
