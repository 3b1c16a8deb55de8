"""What an optimiser step holds: some are drawn from lengths, and split as training splits them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from prefopt.data.lengths import Lengths
from prefopt.data.plan import split_step
from prefopt.models.dry_run import Row
from prefopt.models.layout import LayoutName
from prefopt.train.steps import group_sizes
from prefopt.train.work import Tokens

_NUM_DRAWN = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TypicalStep:
    """A step by its size."""

    tokens: Tokens
    """That all GPUs compute together, on average; a prompt as often as the layout repeats it."""
    num_micro_batches: int
    """The most that a GPU has."""
    row: Row
    """The largest micro-batch: the budget is full, unless a GPU's share of the step is smaller."""


def typical_step(
    lengths: Lengths,
    *,
    groups_per_step: int,
    num_ranks: int,
    tokens_per_micro_batch: int,
    layout: LayoutName,
) -> TypicalStep:
    """The step of a run over so many GPUs."""
    generator = np.random.default_rng(0)
    num_batches, largest_share = 1, 0
    for _ in range(_NUM_DRAWN):
        drawn = generator.integers(len(lengths.prompts), size=groups_per_step)
        responses = lengths.responses[drawn]
        sizes = group_sizes(layout, lengths.prompts[drawn], responses, responses > 0)
        ranks = split_step(
            sizes, num_ranks=num_ranks, tokens_per_micro_batch=tokens_per_micro_batch
        )
        num_batches = max(num_batches, len(ranks[0]))
        shares = (sum(sizes[i].num_alone for batch in rank for i in batch) for rank in ranks)
        largest_share = max(largest_share, *shares)
    per_group = mean_tokens(lengths, layout)
    num_tokens = min(tokens_per_micro_batch, largest_share)
    scored = per_group.scored / per_group.unique
    return TypicalStep(
        tokens=per_group.times(groups_per_step),
        num_micro_batches=num_batches,
        row=_row(num_tokens, scored, _longest(lengths), layout),
    )


def mean_tokens(lengths: Lengths, layout: LayoutName) -> Tokens:
    """Tokens that a group costs on average; padding is not counted."""
    prompts, responses = lengths.prompts[:, None], lengths.responses
    scored = float(responses.sum(axis=1).mean())
    if layout == "shared":
        unique = float(lengths.prompts.mean()) + scored
        visible = _pairs(prompts).sum(axis=1) + (_pairs(responses) + prompts * responses).sum(
            axis=1
        )
        return Tokens(unique=unique, scored=scored, visible=float(visible.mean()))
    rows = np.where(responses > 0, prompts + responses, 0)
    return Tokens(
        unique=float(rows.sum(axis=1).mean()),
        scored=scored,
        visible=float(_pairs(rows).sum(axis=1).mean()),
    )


def _pairs(lengths: Int[np.ndarray, "n k"]) -> Int[np.ndarray, "n k"]:
    """Pairs of a token and one that is not behind it."""
    pairs: Int[np.ndarray, "n k"] = lengths * (lengths + 1) // 2
    return pairs


def _longest(lengths: Lengths) -> int:
    return int((lengths.prompts + lengths.responses.max(axis=1)).max())


def _row(num_tokens: int, scored: float, longest: int, layout: LayoutName) -> Row:
    """A micro-batch of so many tokens, of which a share is scored."""
    if layout != "padded":
        responses = max(1, min(num_tokens - 1, round(scored * num_tokens)))
        return Row(prompt=max(1, num_tokens - responses), responses=(responses,))
    width = min(longest, num_tokens)
    response = max(1, min(width - 1, round(scored * width)))
    rows = max(1, num_tokens // width)
    return Row(prompt=max(1, width - response), responses=(response,) * rows)
