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

    @property
    def groups_per_epoch(self) -> int:
        """Groups drawn in one epoch."""
        return sum(self._drawn_per_source())

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return -(-self.groups_per_epoch // self.groups_per_step)

    def groups(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Record numbers of step `step` of epoch `epoch`, both counted from 0."""
        order = _epoch_order(self, epoch)
        return order[step * self.groups_per_step : (step + 1) * self.groups_per_step]

    def _drawn_per_source(self) -> list[int]:
        sizes = zip(self.records_per_source, self.source_weights, strict=True)
        return [max(round(num * weight), min(num, 1)) for num, weight in sizes]


@lru_cache(maxsize=4)
def _epoch_order(plan: StepPlan, epoch: int) -> NDArray[np.int64]:
    generator = np.random.default_rng([plan.seed, epoch])
    drawn, first = [], 0
    sizes = zip(plan.records_per_source, plan._drawn_per_source(), strict=True)
    for num_records, num_drawn in sizes:
        whole_passes, rest = divmod(num_drawn, num_records) if num_records else (0, 0)
        records = np.arange(first, first + num_records)
        part = np.sort(generator.choice(records, rest, replace=False)) if rest else records[:0]
        drawn += [*[records] * whole_passes, part]
        first += num_records
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
