"""What one rank does of each optimiser step, as items of an ordinary data loader."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch.utils.data import Dataset

from prefopt.data.collate import collate, some_responses
from prefopt.data.plan import GroupSize, StepPlan, split_step
from prefopt.data.store import TokenStore
from prefopt.data.token_facts import differing_tokens, token_noise
from prefopt.models.layout import LayoutName
from prefopt.objectives import Objective
from prefopt.train.share import Facts, LargeGroup, StepKey, StepShare, facts_of
from prefopt.types import GroupBatch, TokenizedRecord

# So few that plain logits cost nothing. Prompts stay whole: a window binds in long texts only.
_EXCERPT_TOKENS = 96


class _Split(NamedTuple):
    """This rank's part of a step."""

    batches: tuple[GroupBatch, ...] = ()
    positions: tuple[tuple[int, ...], ...] = ()
    large: tuple[LargeGroup, ...] = ()
    num_pieces: int = 0
    """The most pieces of large groups that any rank has."""


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
        layout: LayoutName,
    ) -> None:
        self.store = store
        self.plan = plan
        self.objective = objective
        self.rank = rank
        self.num_ranks = num_ranks
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.layout = layout

    def __len__(self) -> int:
        """Groups in an epoch."""
        return self.plan.groups_per_epoch

    def __getitem__(self, key: StepKey) -> StepShare:
        """The share of step key[1] of epoch key[0]."""
        numbers = self.plan.groups(*key)
        facts = facts_of(self.store, numbers)
        num_prompt_tokens = self.store.prompt_lengths[numbers]
        mine = self._mine(
            num_prompt_tokens,
            facts.num_tokens.numpy(),
            facts.where.numpy(),
            lambda i: self.store[numbers[i]],
            key,
        )
        terms = facts.weigh(self.objective).all_terms()
        statistic = _Split()
        if self.objective.mismatches_responses:
            # A group alone in its step has no other one to borrow responses from.
            statistic = self._mismatched(numbers, facts, key) if len(numbers) > 1 else statistic
        elif self.objective.couples_groups and (self.num_ranks > 1 or len(mine.batches) > 1):
            statistic = mine
        return StepShare(
            micro_batches=mine.batches,
            num_real=sum(map(bool, mine.positions)),
            denominators={name: float(term.weight.sum()) for name, term in terms.items()},
            num_tokens=int(num_prompt_tokens.sum() + facts.num_tokens.sum()),
            num_groups=len(numbers),
            positions=mine.positions,
            large=mine.large,
            num_first_passes=mine.num_pieces,
            statistic_batches=statistic.batches,
            statistic_positions=statistic.positions,
            statistic_large=statistic.large,
        )

    def _mine(
        self,
        num_prompt_tokens: Int[np.ndarray, " S"],
        num_tokens: Int[np.ndarray, "S K"],
        where: Bool[np.ndarray, "S K"],
        load: Callable[[int], TokenizedRecord],
        key: StepKey,
    ) -> _Split:
        """This rank's part of a step whose groups have such lengths, in micro-batches."""
        sizes = group_sizes(self.layout, num_prompt_tokens, num_tokens, where)
        budget = self.tokens_per_micro_batch
        split = split_step(sizes, num_ranks=self.num_ranks, tokens_per_micro_batch=budget)
        cuts = {
            i: cut_group(self.layout, budget, int(num_prompt_tokens[i]), num_tokens[i][where[i]])
            for i, size in enumerate(sizes)
            if size.num_alone > budget
        }

        def num_pieces(groups: list[int]) -> int:
            """0 unless the micro-batch is a group in pieces."""
            num = len(cuts.get(groups[0], [])) if groups else 0
            return num if num > 1 else 0

        # Every rank has as many micro-batches as the one with the most, pieces included.
        num = max(sum(num_pieces(g) or bool(g) for g in rank) for rank in split)
        batches: list[GroupBatch] = []
        positions: list[tuple[int, ...]] = []
        large: list[LargeGroup] = []
        for groups in filter(None, split[self.rank]):
            batch = self._batch([load(i) for i in groups], key)
            pieces = [batch]
            if num_pieces(groups):
                pieces = [some_responses(batch, *cut) for cut in cuts[groups[0]]]
                places = tuple(range(len(batches), len(batches) + len(pieces)))
                large.append(LargeGroup(batch=batch, position=groups[0], pieces=places))
            batches += pieces
            positions += [tuple(groups)] * len(pieces)
        cheapest = min(range(len(sizes)), key=lambda i: sizes[i].num_alone)
        if num_fillers := max(num, 1) - len(batches):
            filler = self._batch([load(cheapest)], key)
            if cheapest in cuts:
                filler = some_responses(filler, *cuts[cheapest][0])
            batches += [filler] * num_fillers
            positions += [()] * num_fillers
        return _Split(
            batches=tuple(batches),
            positions=tuple(positions),
            large=tuple(large),
            num_pieces=max(sum(map(num_pieces, rank)) for rank in split),
        )

    def _mismatched(self, numbers: Int[np.ndarray, " S"], facts: Facts, key: StepKey) -> _Split:
        """The step with every prompt before the responses of the next group, cut to fit a row."""
        following = np.roll(numbers, -1)
        num_prompt_tokens = self.store.prompt_lengths[numbers]

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
                # Of these responses to their own prompt, so of no use here.
                reference_logps=None,
            )

        of_others = [np.roll(each.numpy(), -1, axis=0) for each in (facts.num_tokens, facts.where)]
        room = (self.longest_row - num_prompt_tokens)[:, None]
        num_tokens = np.minimum(of_others[0], room)
        return self._mine(num_prompt_tokens, num_tokens, of_others[1], load, key)

    @cached_property
    def longest_row(self) -> int:
        """Tokens of the longest prompt with response in the data."""
        first = self.store.first_responses[:-1]
        longest = np.maximum.reduceat(self.store.all_response_lengths, first)
        return int((self.store.prompt_lengths + longest).max())

    def excerpt(self) -> GroupBatch:
        """Two groups of the first step, responses cut short, to look at how the model computes."""
        records = [self.store[i] for i in self.plan.groups(0, 0)[:2]]
        return collate(
            [
                replace(
                    record,
                    response_ids=tuple(ids[:_EXCERPT_TOKENS] for ids in record.response_ids[:2]),
                    scores=record.scores[:2],
                    token_weights=None,
                    reference_logps=None,
                )
                for record in records
            ]
        )

    def group(self, number: int, key: StepKey = (0, 0)) -> GroupBatch:
        """One record alone, with whatever the objective reads of single tokens in that step."""
        return self._batch([self.store[number]], key)

    def fitting(self, numbers: Int[np.ndarray, " S"]) -> Int[np.ndarray, " _"]:
        """Records that a micro-batch can hold with a prompt before each of their responses."""
        facts = facts_of(self.store, numbers)
        sizes = group_sizes(
            "padded" if self.layout == "padded" else "packed",
            self.store.prompt_lengths[numbers],
            facts.num_tokens.numpy(),
            facts.where.numpy(),
        )
        fits = [size.num_alone <= self.tokens_per_micro_batch for size in sizes]
        kept: Int[np.ndarray, " _"] = numbers[np.array(fits, dtype=bool)]
        return kept

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


def group_sizes(
    layout: LayoutName,
    num_prompt_tokens: Int[np.ndarray, " S"],
    num_tokens: Int[np.ndarray, "S K"],
    where: Bool[np.ndarray, "S K"],
) -> list[GroupSize]:
    """What groups cost in a layout."""
    num_rows = where.sum(axis=1)
    longest = num_prompt_tokens + num_tokens.max(axis=1)
    num_prompts = 1 if layout == "shared" else num_rows
    flat = num_prompts * num_prompt_tokens + num_tokens.sum(axis=1)
    in_row = [None] * len(flat) if layout == "padded" else flat.tolist()
    columns = num_rows.tolist(), longest.tolist(), in_row
    return [GroupSize(*size) for size in zip(*columns, strict=True)]


def cut_group(
    layout: LayoutName, budget: int, num_prompt_tokens: int, lengths: Int[np.ndarray, " K"]
) -> list[tuple[int, int]]:
    """A group's responses in neighbouring pieces that fit the budget, each of at least one.

    Args:
        layout: how the model lays a micro-batch out.
        budget: tokens that a micro-batch may hold.
        num_prompt_tokens: of the prompt, which stands in every piece.
        lengths: tokens of each response.

    Returns:
        first response of each piece, and the one after its last.
    """
    cuts = []
    first = 0
    for stop in range(2, len(lengths) + 1):
        piece = lengths[None, first:stop]
        prompt, where = np.array([num_prompt_tokens]), np.ones_like(piece, dtype=bool)
        (size,) = group_sizes(layout, prompt, piece, where)
        if size.num_alone > budget:
            cuts.append((first, stop - 1))
            first = stop - 1
    return [*cuts, (first, len(lengths))]
