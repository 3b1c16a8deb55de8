"""What one rank does of each optimiser step, as items of an ordinary data loader."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.utils.data import DataLoader, Dataset, Sampler

from prefopt.data.collate import collate
from prefopt.data.plan import GroupSize, StepPlan, split_step
from prefopt.data.store import TokenStore
from prefopt.data.token_facts import differing_tokens, token_noise
from prefopt.objectives import Objective, weigh
from prefopt.types import GroupBatch, ObjectiveOutput, TokenizedRecord


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
    num_groups: int
    """Groups of the whole step."""
    positions: tuple[tuple[int, ...], ...]
    """Where each micro-batch's groups stand in the step; none for a filler."""
    statistic_batches: tuple[GroupBatch, ...] = ()
    """What an objective that couples groups takes its statistic of; empty if there is nothing to
    take it of, or the one micro-batch is the whole step."""
    statistic_positions: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the data alone says of G groups."""

    scores: Float[torch.Tensor, "G K"]
    num_tokens: Int[torch.Tensor, "G K"]
    where: Bool[torch.Tensor, "G K"]

    def weigh(self, objective: Objective) -> ObjectiveOutput:
        """What the objective says of the groups before any model has seen them."""
        return weigh(objective, scores=self.scores, num_tokens=self.num_tokens, where=self.where)


StepKey = tuple[int, int]
"""Epoch and step in the epoch, both counted from 0."""

_Split = tuple[tuple[tuple[int, ...], ...], tuple[GroupBatch, ...]]
"""Positions in the step of the groups of each micro-batch, and the micro-batches."""


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
        numbers = self.plan.groups(*key)
        facts = facts_of(self.store, numbers)
        num_prompt_tokens = self.store.prompt_lengths[numbers]
        longest = num_prompt_tokens + facts.num_tokens.numpy().max(axis=1)
        num_rows = self.store.num_responses[numbers]
        positions, batches = self._mine(num_rows, longest, lambda i: self.store[numbers[i]], key)
        terms = facts.weigh(self.objective).all_terms()
        split: _Split = (), ()
        if self.objective.mismatches_responses:
            # A group alone in its step has no other one to borrow responses from.
            split = self._mismatched(numbers, facts, key) if len(numbers) > 1 else split
        elif self.objective.couples_groups and (self.num_ranks > 1 or len(batches) > 1):
            split = positions, batches
        return StepShare(
            micro_batches=batches,
            num_real=sum(map(bool, positions)),
            denominators={name: float(term.weight.sum()) for name, term in terms.items()},
            num_tokens=int(num_prompt_tokens.sum() + facts.num_tokens.sum()),
            num_groups=len(numbers),
            positions=positions,
            statistic_positions=split[0],
            statistic_batches=split[1],
        )

    def _mine(
        self,
        num_rows: Int[np.ndarray, " S"],
        longest: Int[np.ndarray, " S"],
        load: Callable[[int], TokenizedRecord],
        key: StepKey,
    ) -> _Split:
        """This rank's part of a step whose groups have such rows, in micro-batches."""
        mine = split_step(
            [GroupSize(*size) for size in zip(num_rows.tolist(), longest.tolist(), strict=True)],
            num_ranks=self.num_ranks,
            tokens_per_micro_batch=self.tokens_per_micro_batch,
        )[self.rank]
        cheapest = int((num_rows * longest).argmin())
        batches = [self._batch([load(i) for i in groups or [cheapest]], key) for groups in mine]
        return tuple(map(tuple, mine)), tuple(batches)

    def _mismatched(self, numbers: Int[np.ndarray, " S"], facts: Facts, key: StepKey) -> _Split:
        """The step with every prompt before the responses of the next group, cut to fit a row."""
        following = np.roll(numbers, -1)
        num_prompt_tokens = self.store.prompt_lengths[numbers]
        longest = num_prompt_tokens + np.roll(facts.num_tokens.numpy().max(axis=1), -1)

        def load(i: int) -> TokenizedRecord:
            record: TokenizedRecord = self.store[numbers[i]]
            other: TokenizedRecord = self.store[following[i]]
            room = self.longest_row - record.num_prompt_tokens
            return replace(
                other,
                id=record.id,
                prompt_ids=record.prompt_ids,
                response_ids=tuple(ids[:room] for ids in other.response_ids),
                token_weights=None,
            )

        longest = np.minimum(longest, self.longest_row)
        return self._mine(self.store.num_responses[following], longest, load, key)

    @cached_property
    def longest_row(self) -> int:
        """Tokens of the longest prompt with response in the data."""
        first = self.store.first_responses[:-1]
        longest = np.maximum.reduceat(self.store.all_response_lengths, first)
        return int((self.store.prompt_lengths + longest).max())

    def _batch(self, records: Sequence[TokenizedRecord], key: StepKey) -> GroupBatch:
        """A micro-batch with whatever the objective reads of single tokens."""
        batch, objective = collate(records), self.objective
        if objective.needs_diff:
            differs = [each for record in records for each in differing_tokens(record)]
            batch = replace(batch, differs=torch.cat(differs))
        if objective.num_top_logits:
            noise = [each for r in records for each in token_noise(r, [self.plan.seed, *key])]
            batch = replace(batch, noise=torch.cat(noise))
        if objective.num_top_logits or objective.needs_reference_distribution:
            chosen = objective.responses_with_statistics(batch.scores, batch.where)
            is_chosen = chosen.flatten()[batch.response_of_token]
            batch = replace(
                batch,
                statistic_tokens=is_chosen.nonzero().squeeze(1),
                plain_tokens=(~is_chosen).nonzero().squeeze(1),
            )
        return batch


def facts_of(store: TokenStore, records: Int[np.ndarray, " G"]) -> Facts:
    """What is known of some records without reading their tokens."""
    counts = store.num_responses[records]
    slots = np.arange(counts.max())
    where = slots < counts[:, None]
    # Slots beyond the last response point anywhere; the mask covers them.
    positions = np.where(where, store.first_responses[records][:, None] + slots, 0)
    return Facts(
        scores=torch.from_numpy(np.where(where, store.all_scores[positions], 0.0)),
        num_tokens=torch.from_numpy(np.where(where, store.all_response_lengths[positions], 0)),
        where=torch.from_numpy(where),
    )


class StepSampler(Sampler[list[StepKey]]):
    """Keys of an epoch's steps, one per batch.

    transformers.Trainer sets the epoch on what it finds at `batch_sampler.batch_sampler` of the
    loader, which is where a loader that skips the first batches of a resumed epoch keeps this.
    """

    def __init__(self, steps_per_epoch: int, num_steps: int) -> None:
        """Takes the steps of an epoch and of the whole run; the last epoch may be cut short."""
        self.steps_per_epoch = steps_per_epoch
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
        """Steps in a whole epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[list[StepKey]]:
        # Without the cut, a run resumed from its very last step would take one more.
        left = self.num_steps - self.epoch * self.steps_per_epoch
        for step in range(min(left, self.steps_per_epoch)):
            yield [(self.epoch, step)]


def step_loader(
    dataset: StepDataset, *, num_steps: int, num_workers: int = 0
) -> DataLoader[StepShare]:
    """A loader that yields one share per optimiser step, `num_steps` in all epochs together."""
    if num_workers:
        # By default every tensor that a worker hands over keeps a file open, and a step has many.
        torch.multiprocessing.set_sharing_strategy("file_system")
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(dataset.plan.steps_per_epoch, num_steps),
        collate_fn=_the_only,
        num_workers=num_workers,
    )


def _the_only(shares: list[StepShare]) -> StepShare:
    (share,) = shares
    return share
