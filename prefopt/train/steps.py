"""What one rank does of each optimiser step, as items of an ordinary data loader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from prefopt.data.collate import collate
from prefopt.data.plan import GroupSize, StepPlan, split_step
from prefopt.data.store import TokenStore
from prefopt.objectives import Objective, weigh
from prefopt.types import GroupBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShare:
    """One rank's part of one optimiser step, and what it must know of the whole step."""

    micro_batches: tuple[GroupBatch, ...]
    """At least one; every rank has the same number."""
    num_real: int
    """Micro-batches after this many repeat a group with weight 0, to keep ranks in step."""
    denominators: dict[str, float]
    """Of each term of the loss: the sum of weights over all groups of the step, on all ranks."""
    num_tokens: int
    """Prompt and response tokens of the whole step, each prompt once."""


StepKey = tuple[int, int]
"""Epoch and step in the epoch, both counted from 0."""


class StepDataset(Dataset[StepShare]):
    """The shares of one rank, looked up by epoch and step."""

    def __init__(
        self,
        store: TokenStore,
        plan: StepPlan,
        objective: Objective,
        *,
        rank: int,
        num_ranks: int,
        tokens_per_micro_batch: int,
    ) -> None:
        self.store = store
        self.plan = plan
        self.objective = objective
        self.rank = rank
        self.num_ranks = num_ranks
        self.tokens_per_micro_batch = tokens_per_micro_batch

    def __len__(self) -> int:
        """Groups in an epoch."""
        return self.plan.groups_per_epoch

    def __getitem__(self, key: StepKey) -> StepShare:
        """The share of step key[1] of epoch key[0]."""
        records = self.plan.groups(*key).tolist()
        sizes = [self._size(record) for record in records]
        mine = split_step(
            sizes, num_ranks=self.num_ranks, tokens_per_micro_batch=self.tokens_per_micro_batch
        )[self.rank]
        smallest = min(range(len(sizes)), key=lambda i: sizes[i].num_rows * sizes[i].longest_row)
        filled = [groups or [smallest] for groups in mine]
        return StepShare(
            micro_batches=tuple(
                collate([self.store[records[i]] for i in groups]) for groups in filled
            ),
            num_real=sum(bool(groups) for groups in mine),
            denominators=self._denominators(records),
            num_tokens=sum(
                int(self.store.prompt_lengths[record]) + sum(self.store.response_lengths(record))
                for record in records
            ),
        )

    def _size(self, record: int) -> GroupSize:
        lengths = self.store.response_lengths(record)
        longest = int(self.store.prompt_lengths[record]) + max(lengths)
        return GroupSize(num_rows=len(lengths), longest_row=longest)

    def _denominators(self, records: Sequence[int]) -> dict[str, float]:
        scores, num_tokens, where = facts_of(self.store, records)
        output = weigh(self.objective, scores=scores, where=where, num_tokens=num_tokens)
        return {name: float(term.weight.sum()) for name, term in output.all_terms().items()}


def facts_of(
    store: TokenStore, records: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, token counts and mask of some records, all [G K], without reading their tokens."""
    num_slots = max(len(store.scores(record)) for record in records)
    scores = torch.zeros(len(records), num_slots, dtype=torch.float64)
    num_tokens = torch.zeros(len(records), num_slots, dtype=torch.int64)
    where = torch.zeros(len(records), num_slots, dtype=torch.bool)
    for g, record in enumerate(records):
        num_responses = len(store.scores(record))
        scores[g, :num_responses] = torch.as_tensor(store.scores(record), dtype=torch.float64)
        num_tokens[g, :num_responses] = torch.as_tensor(store.response_lengths(record))
        where[g, :num_responses] = True
    return scores, num_tokens, where


class StepSampler(Sampler[list[StepKey]]):
    """Keys of an epoch's steps, one per batch.

    transformers.Trainer sets the epoch on what it finds at `batch_sampler.batch_sampler` of the
    loader, which is where a loader that skips the first batches of a resumed epoch keeps this.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.epoch = 0

    @property
    def batch_sampler(self) -> "StepSampler":
        """Itself, so that the epoch arrives whether or not batches are skipped."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.num_steps

    def __iter__(self) -> Iterator[list[StepKey]]:
        for step in range(self.num_steps):
            yield [(self.epoch, step)]


def step_loader(dataset: StepDataset, *, num_workers: int = 0) -> DataLoader[StepShare]:
    """A loader that yields one share per optimiser step."""
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(dataset.plan.steps_per_epoch),
        collate_fn=_the_only,
        num_workers=num_workers,
    )


def _the_only(shares: list[StepShare]) -> StepShare:
    (share,) = shares
    return share
