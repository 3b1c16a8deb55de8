"""Tokens of a source: made once, by one or several processes, and kept."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from prefopt.data.cache import build_once
from prefopt.data.identity import digest
from prefopt.data.records import RecordFile
from prefopt.data.shard import Shard, ShardWriter
from prefopt.data.token_batch import TokenBatch, TokenOptions, tokenize_batch
from prefopt.data.tokenize import Encoder
from prefopt.errors import UserError

_VERSION = 2
"""Raise it when the same records would give other tokens."""


def load_tokens(
    records: RecordFile,
    encoder: Encoder,
    options: TokenOptions,
    *,
    cache: Path,
    num_workers: int,
    on_records: Callable[[int], None],
) -> Shard:
    """The tokens of a source's records, made unless the cache has them.

    Args:
        records: the source.
        encoder: the tokenizer.
        options: what is selected and cut.
        cache: folder of the cache.
        num_workers: processes that tokenise.
        on_records: called after each batch with the number of records done.

    Raises:
        UserError: if a record cannot be tokenised, or all of them are dropped.
    """

    def build(folder: Path) -> None:
        counts: Counter[str] = Counter()
        longest = 0
        with ShardWriter(folder) as writer:
            for batch in _batches(records, encoder, options, num_workers):
                writer.append(batch.columns)
                counts.update(batch.counts)
                longest = max(longest, batch.longest_prompt)
                on_records(counts["records"])
            if counts["records"] == counts["dropped"]:
                raise UserError(_nothing_left(records, counts["records"], longest, options))
            writer.finish(counts)

    folder = tokens_folder(records, encoder, options, cache)
    return Shard(build_once(folder, build), records.part_names)


def tokens_folder(
    records: RecordFile, encoder: Encoder, options: TokenOptions, cache: Path
) -> Path:
    """Where the cache has the tokens of a source, or will have them."""
    # Names are part of a record's id, which `best_random` draws by.
    names = records.part_names if options.keep == "best_random" else ()
    identity = f"{_VERSION} {records.key} {encoder.fingerprint()} {options!r} {names}"
    return cache / "tokens" / digest(identity)


def _nothing_left(records: RecordFile, total: int, longest: int, options: TokenOptions) -> str:
    can_cut = options.too_long != "cut_response"
    way_out = "Raise it" + (", or set data.too_long: cut_response" if can_cut else "")
    return (
        f"data.max_length: all {total} records of {', '.join(records.part_names)} are longer than "
        f"{options.max_length} tokens; the longest prompt has {longest}. {way_out}."
    )


def _batches(
    records: RecordFile, encoder: Encoder, options: TokenOptions, num_workers: int
) -> Iterator[TokenBatch]:
    """Tokens of each batch of records, in order."""
    numbers = range(records.num_batches)
    num_workers = min(num_workers, len(numbers))
    if num_workers == 1:
        for number in numbers:
            yield tokenize_batch(records.batch(number), encoder, options)
        return
    # Forking a process that runs threads (Arrow, tokenizers, CUDA) can hang: start fresh ones.
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(records, encoder, options),
    )
    try:
        yield from pool.map(_work, numbers)
    finally:
        pool.shutdown(cancel_futures=True)


_worker_arguments: list[tuple[RecordFile, Encoder, TokenOptions]] = []
"""What a worker process was started with: it gets a tokenizer once and batch numbers after."""


def _start_worker(records: RecordFile, encoder: Encoder, options: TokenOptions) -> None:
    # One process per core is enough: threads of the tokenizer would fight over the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_arguments[:] = [(records, encoder, options)]


def _work(number: int) -> TokenBatch:
    [(records, encoder, options)] = _worker_arguments
    return tokenize_batch(records.batch(number), encoder, options)
