"""What a rank knows of an optimiser step, and what the data says of its groups."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from prefopt.data.store import TokenStore
from prefopt.objectives import Objective, weigh
from prefopt.types import GroupBatch, ObjectiveOutput

StepKey = tuple[int, int]
"""Epoch and step in the epoch, both counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LargeGroup:
    """A group that no micro-batch can hold, in pieces of some of its responses each."""

    batch: GroupBatch
    """The whole group, which no model sees in one pass."""
    position: int
    """Where it stands in the step."""
    pieces: tuple[int, ...]
    """Which micro-batches are its pieces, in the order of the responses."""


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
    """Where each micro-batch's groups stand in the step; none for a filler. A piece has that of
    its whole group."""
    statistic_batches: tuple[GroupBatch, ...] = ()
    """What an objective that couples groups takes its statistic of; empty if there is nothing to
    take it of, or the one micro-batch is the whole step."""
    statistic_positions: tuple[tuple[int, ...], ...] = ()
    large: tuple[LargeGroup, ...] = ()
    """Groups of which the micro-batches hold pieces."""
    statistic_large: tuple[LargeGroup, ...] = ()
    num_first_passes: int = 0
    """Micro-batches that are scored before the gradient pass, as many on every rank: pieces, and
    any one again where a rank has fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the data alone says of G groups."""

    scores: Float[torch.Tensor, "G K"]
    num_tokens: Int[torch.Tensor, "G K"]
    where: Bool[torch.Tensor, "G K"]

    def weigh(self, objective: Objective) -> ObjectiveOutput:
        """What the objective says of the groups before any model has seen them."""
        return weigh(objective, scores=self.scores, num_tokens=self.num_tokens, where=self.where)


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
