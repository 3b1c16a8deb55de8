"""Reference log-probs of whole sources, computed by all processes together and kept on disk."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from filelock import Timeout
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.data.collate import collate
from prefopt.data.plan import GroupSize, split_step
from prefopt.data.reference_cache import (
    About,
    PieceState,
    ReferenceColumn,
    ReferenceFolder,
)
from prefopt.data.shard import Shard, starts
from prefopt.data.store import TokenStore
from prefopt.errors import UserError
from prefopt.models.layout import LayoutName
from prefopt.models.reference import Reference
from prefopt.train.processes import on_first_of_each_node, on_first_process
from prefopt.train.share import facts_of
from prefopt.train.steps import cut_group, group_sizes
from prefopt.types import TokenizedRecord

_NUM_SAMPLED = 8
# Root mean square, in nats per token. Another batch of the same records rounds differently; other
# weights or tokens show as tenths or more.
_TOLERANCE = 1e-4
_TOLERANCE_BF16 = 5e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """A live reference, on all processes of the launch."""

    accelerator: Accelerator
    reference: Reference
    policy: nn.Module
    """The policy inside whatever wraps it."""
    layout: LayoutName
    tokens_per_micro_batch: int
    is_low_precision: bool
    """Whether the forward pass computes in bfloat16."""

    def logps_of(self, records: TokenStore) -> Float[Tensor, " N"]:
        """Log-probs of all response tokens of some records, end to end; the same on every process.

        Every process runs the same number of forward passes, so that shards stay in step.
        """
        parts = _parts_of(records, self.layout, self.tokens_per_micro_batch)
        mine = split_step(
            [part.size for part in parts],
            num_ranks=self.accelerator.num_processes,
            tokens_per_micro_batch=self.tokens_per_micro_batch,
        )[self.accelerator.process_index]
        cheapest = min(range(len(parts)), key=lambda i: parts[i].size.num_alone)
        edges = starts(np.array([part.num_tokens for part in parts])).tolist()
        logps = torch.zeros(edges[-1], device=self.accelerator.device)
        for numbers in mine:
            some = [parts[i] for i in numbers or [cheapest]]
            batch = collate([part.of(records) for part in some]).to(self.accelerator.device)
            found = self.reference.token_logps(batch, self.policy)
            of_parts = found.float().split([part.num_tokens for part in some])
            # A filler keeps processes in step; nobody asked for its numbers.
            for i, of_part in zip(numbers, of_parts, strict=False):
                logps[edges[i] : edges[i + 1]] = of_part
        # A number is 0 on all processes but one.
        reduced: Tensor = self.accelerator.reduce(logps, reduction="sum")
        return reduced.cpu()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Neighbouring responses of a record that run together: all of them where there is room."""

    record: int
    responses: slice
    num_tokens: int
    """Response tokens."""
    size: GroupSize

    def of(self, records: TokenStore) -> TokenizedRecord:
        """The record with these responses alone."""
        whole = records[self.record]
        return replace(
            whole,
            response_ids=whole.response_ids[self.responses],
            scores=whole.scores[self.responses],
            token_weights=None,
            reference_logps=None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedSource:
    """A source, and where its reference log-probs lie or will lie."""

    shard: Shard
    folder: ReferenceFolder
    about: About

    def states(self) -> list[PieceState]:
        """Of each piece, the worst state on any node: they need not share a disk."""
        of_nodes = on_first_of_each_node(self.folder.states)
        order: tuple[PieceState, ...] = ("broken", "missing", "whole")
        return [min(states, key=order.index) for states in zip(*of_nodes, strict=True)]

    def num_records_in(self, pieces: Sequence[int]) -> int:
        """Records of some pieces."""
        return sum(len(self.folder.records_of(piece)) for piece in pieces)


def compute_missing(
    source: CachedSource,
    scorer: Scorer,
    *,
    say: Callable[[str], None],
    on_records: Callable[[int], None],
) -> None:
    """Compute and store every piece that is not whole.

    Another run that computes the same is waited for, and its pieces are taken.

    Args:
        source: which records, and where the numbers belong.
        scorer: what computes them.
        say: told, on the first process, what a person should know.
        on_records: called after each piece with the number of its records.

    Raises:
        UserError: on all processes, if a log-prob is not finite, the disk is full or the cache
            cannot be written.
    """
    with ExitStack() as held:
        on_first_process(lambda: _wait_for_others(source, held, say))
        on_first_of_each_node(lambda: source.folder.begin(source.about))
        store = TokenStore([source.shard])
        for piece, state in enumerate(source.states()):
            if state == "whole":
                continue
            records = store.subset(source.folder.records_of(piece))
            logps = scorer.logps_of(records)
            _check_finite(logps, records)
            on_first_of_each_node(partial(_keep, source, piece, logps))
            on_records(len(records))


def check_sample(sources: Sequence[CachedSource], scorer: Scorer) -> list[ReferenceColumn]:
    """The columns of sources whose pieces are all whole, after a look at some of their records.

    Raises:
        UserError: on all processes, if the live reference gives other log-probs.
    """
    columns = [ReferenceColumn(source.folder, source.shard) for source in sources]
    store = TokenStore([source.shard for source in sources]).with_reference(columns)
    num_sampled = min(_NUM_SAMPLED, len(store))
    drawn = np.random.default_rng(0).choice(len(store), num_sampled, replace=False)
    records = store.subset(np.sort(drawn))
    stored = [torch.cat(records[i].reference_logps or ()) for i in range(len(records))]
    live = scorer.logps_of(records).split([len(each) for each in stored])
    squares = [(one - other) ** 2 for one, other in zip(stored, live, strict=True)]
    deviation = torch.cat(squares).mean().sqrt().item()
    if not deviation <= (_TOLERANCE_BF16 if scorer.is_low_precision else _TOLERANCE):
        worst = int(torch.stack([each.mean() for each in squares]).argmax())
        folder = sources[int(records.source_of_record[worst])].folder.folder
        refusal = (
            f"{folder}: cached log-probs of {records.record_id(worst)} and others differ by "
            f"{deviation:.2g} nats per token from those that the reference gives now. Remove them: "
            f"prefopt cache prune {folder.name} --cache-dir {folder.parents[1]}"
        )
    else:
        refusal = None
    on_first_of_each_node(lambda: _refuse(refusal))
    return columns


def _parts_of(records: TokenStore, layout: LayoutName, budget: int) -> list[_Part]:
    """All responses of some records, in order, in parts that fit the budget if they can."""
    facts = facts_of(records, np.arange(len(records)))
    num_prompt_tokens, num_tokens = records.prompt_lengths, facts.num_tokens.numpy()
    where = facts.where.numpy()
    parts = []
    for i, size in enumerate(group_sizes(layout, num_prompt_tokens, num_tokens, where)):
        lengths = num_tokens[i][where[i]]
        cuts = [(0, len(lengths))]
        if size.num_alone > budget:
            cuts = cut_group(layout, budget, int(num_prompt_tokens[i]), lengths)
        for cut in cuts:
            responses = slice(*cut)
            some, there = num_tokens[i : i + 1, responses], where[i : i + 1, responses]
            (of_part,) = group_sizes(layout, num_prompt_tokens[i : i + 1], some, there)
            num = int(some.sum())
            parts.append(_Part(record=i, responses=responses, num_tokens=num, size=of_part))
    return parts


def _wait_for_others(source: CachedSource, held: ExitStack, say: Callable[[str], None]) -> None:
    lock = source.folder.lock()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("reference: waiting for another run that computes the same log-probs")
        lock.acquire()
    held.callback(lock.release)


def _keep(source: CachedSource, piece: int, logps: Float[Tensor, " N"]) -> None:
    # This node may have what another one lacked.
    if source.folder.state(piece) != "whole":
        source.folder.write(piece, logps.numpy())


def _check_finite(logps: Float[Tensor, " N"], records: TokenStore) -> None:
    wrong = (~torch.isfinite(logps)).nonzero()
    if len(wrong) == 0:
        return
    lengths = np.add.reduceat(records.all_response_lengths, records.first_responses[:-1])
    record = int(np.searchsorted(np.cumsum(lengths), int(wrong[0]), side="right"))
    raise UserError(
        f"{records.record_id(record)}: the reference gives a log-prob that is not finite. "
        "Look at the record and at the weights of the reference."
    )


def _refuse(refusal: str | None) -> None:
    if refusal is not None:
        raise UserError(refusal)
