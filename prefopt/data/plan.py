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
    """What a group costs: in rows that are padded to one length, or in a flat row."""

    num_rows: int
    longest_row: int
    """Tokens of the prompt and its longest response."""
    num_tokens: int | None = None
    """Tokens that it adds to a flat row; None where rows are padded."""

    @property
    def num_alone(self) -> int:
        """Tokens of a micro-batch that holds this group alone."""
        return self.num_rows * self.longest_row if self.num_tokens is None else self.num_tokens


def split_step(
    sizes: Sequence[GroupSize], *, num_ranks: int, tokens_per_micro_batch: int
) -> list[list[list[int]]]:
    """Positions of a step's groups as [rank][micro-batch][...], every group exactly once.

    Ranks get about the same number of tokens. A micro-batch holds at most the budget of tokens,
    padding included, unless a single group is larger: then it is alone. All ranks have the same
    number of micro-batches, at least one; those of a rank that is short of work are empty.
    """
    by_size = sorted(
        range(len(sizes)), key=lambda i: (-sizes[i].longest_row, -sizes[i].num_alone, i)
    )
    ranks = _even([sizes[i].num_alone for i in by_size], num_ranks)
    ranks = [[by_size[j] for j in rank] for rank in ranks]
    budget = tokens_per_micro_batch
    if any(size.num_tokens is None for size in sizes):
        split = [_pack_padded(groups, sizes, budget) for groups in ranks]
        num = max(1, *map(len, split))
        return [batches + [[]] * (num - len(batches)) for batches in split]
    num = max(1, *(_num_flat([sizes[i].num_alone for i in groups], budget) for groups in ranks))
    return [
        [[groups[j] for j in batch] for batch in _even([sizes[i].num_alone for i in groups], num)]
        for groups in ranks
    ]


def _even(costs: Sequence[int], num_shares: int) -> list[list[int]]:
    """Positions in shares of about the same cost, largest first each to the lightest share."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    load = [0] * num_shares
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        share = load.index(min(load))
        shares[share].append(i)
        load[share] += costs[i]
    return shares


def _num_flat(costs: Sequence[int], budget: int) -> int:
    """The fewest even shares of which none is beyond the budget, but for single large groups."""
    small = [cost for cost in costs if cost <= budget]
    num = max(1, len(costs) - len(small) + -(-sum(small) // budget))
    while any(
        len(share) > 1 and sum(costs[i] for i in share) > budget for share in _even(costs, num)
    ):
        num += 1
    return num


def _pack_padded(groups: Sequence[int], sizes: Sequence[GroupSize], budget: int) -> list[list[int]]:
    """Micro-batches of groups that come longest first, so that the first sets the row length."""
    batches: list[list[int]] = []
    num_rows, longest = 0, 0
    for i in sorted(groups, key=lambda i: (-sizes[i].longest_row, -sizes[i].num_rows, i)):
        if batches and (num_rows + sizes[i].num_rows) * longest <= budget:
            batches[-1].append(i)
            num_rows += sizes[i].num_rows
        else:
            batches.append([i])
            num_rows, longest = sizes[i].num_rows, sizes[i].longest_row
    return batches
