"""What one rank does of each optimiser step, as items of an ordinary data loader."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.utils.data import DataLoader, Dataset, Sampler

from prefopt.data.collate import collate
from prefopt.data.plan import GroupSize, StepPlan, split_step
from prefopt.data.store import TokenStore
from prefopt.errors import UserError
from prefopt.objectives import Objective, weigh
from prefopt.types import GroupBatch, ObjectiveOutput

_RECORDS_AT_ONCE = 2**16
_READS = {
    "preferred_pairs": "pairs of responses of which one scores higher",
    "graded": "scores",
    "labels": "labels 0 and 1",
    "responses": "the responses that it selects",
}


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
        records = self.plan.groups(*key)
        facts = facts_of(self.store, records)
        longest = self.store.prompt_lengths[records] + facts.num_tokens.numpy().max(axis=1)
        num_rows = self.store.num_responses[records]
        mine = split_step(
            [GroupSize(*size) for size in zip(num_rows.tolist(), longest.tolist(), strict=True)],
            num_ranks=self.num_ranks,
            tokens_per_micro_batch=self.tokens_per_micro_batch,
        )[self.rank]
        cheapest = int((num_rows * longest).argmin())
        filled = [groups or [cheapest] for groups in mine]
        terms = facts.weigh(self.objective).all_terms()
        return StepShare(
            micro_batches=tuple(
                collate([self.store[records[i]] for i in groups]) for groups in filled
            ),
            num_real=sum(bool(groups) for groups in mine),
            denominators={name: float(term.weight.sum()) for name, term in terms.items()},
            num_tokens=int(self.store.prompt_lengths[records].sum() + facts.num_tokens.sum()),
        )


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


def check_scores(objective: Objective, store: TokenStore) -> int:
    """How many records the objective counts; refuse data from which it cannot learn.

    Raises:
        UserError: if no record says anything to the objective, or it needs labels and a score is
            neither 0 nor 1.
    """
    if objective.needs == "labels":
        wrong = np.flatnonzero(~np.isin(store.all_scores, (0.0, 1.0)))
        if wrong.size:
            record = int(np.searchsorted(store.first_responses, wrong[0], side="right")) - 1
            raise UserError(
                f"{store.record_id(record)}: score {store.all_scores[wrong[0]]}, but "
                f"objective.name: {objective.name} needs labels, 0 or 1. "
                "Label the data, or choose an objective for scored lists."
            )
    num_counted = 0
    for first in range(0, len(store), _RECORDS_AT_ONCE):
        records = np.arange(first, min(first + _RECORDS_AT_ONCE, len(store)))
        num_counted += int(facts_of(store, records).weigh(objective).counted.sum())
    if num_counted == 0:
        raise UserError(
            f"data: none of the {len(store)} records says anything to objective.name: "
            f"{objective.name}, which reads {_READS[objective.needs]}. "
            "Look at the scores with prefopt validate, or choose another objective."
        )
    return num_counted


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
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(dataset.plan.steps_per_epoch, num_steps),
        collate_fn=_the_only,
        num_workers=num_workers,
    )


def _the_only(shares: list[StepShare]) -> StepShare:
    (share,) = shares
    return share
