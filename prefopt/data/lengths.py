"""How long prompts and responses are: known from the cache, looked up in a sample, or assumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Int

from prefopt.data.formats import Row
from prefopt.data.prepare import OpenedSource, open_sources
from prefopt.data.records import RecordFile, load_records, records_folder
from prefopt.data.section import DataSection
from prefopt.data.shard import Shard
from prefopt.data.sources import Part
from prefopt.data.store import TokenStore
from prefopt.data.token_batch import TokenOptions
from prefopt.data.tokenize import Encoder, Tokenizer
from prefopt.data.tokens import load_tokens, tokens_folder
from prefopt.errors import UserError

_SAMPLED_ROWS = 1000
# UltraFeedback's means, table 1 of arxiv.org/abs/2310.01377.
ASSUMED_PROMPT, ASSUMED_RESPONSE, ASSUMED_RESPONSES = 185, 305, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Tokens of n groups."""

    prompts: Int[np.ndarray, " n"]
    responses: Int[np.ndarray, "n K"]
    """0 where a group has fewer responses."""
    num_records: int | None
    """Of all the data; None where nobody has counted them."""
    said_by: str
    """Where they come from, as a clause."""
    is_assumed: bool = False


def lengths_of_data(section: DataSection, tokenizer: Tokenizer) -> Lengths:
    """The lengths of a recipe's training data, without tokenising all of it.

    Files are hashed. Where their tokens are in the cache these are exact, else those of the first
    rows of each source.

    Raises:
        UserError: if a source is not on this machine, or a sampled row is wrong.
    """
    for source in section.sources:
        if not Path(source.path).expanduser().exists():
            raise UserError(f"data.sources: {source.path} is not on this machine.")
    encoder = Encoder(tokenizer)
    opened = open_sources(section.sources, num_train=len(section.sources))
    shards = [_cached(source, section, encoder) for source in opened]
    whole = [shard for shard in shards if shard is not None]
    if len(whole) == len(opened):
        return _of_store(TokenStore(whole), is_whole=True, said_by="all of its tokens")
    with TemporaryDirectory() as folder:
        sampled = [_sampled(source, section, encoder, Path(folder)) for source in opened]
        what = f"the first {_SAMPLED_ROWS:,} rows of each source"
        return _of_store(TokenStore(sampled), is_whole=False, said_by=what)


def assumed_lengths(max_length: int, num_responses: int = ASSUMED_RESPONSES) -> Lengths:
    """Groups of texts as long as UltraFeedback's are on average, where they fit."""
    prompt = min(ASSUMED_PROMPT, max_length - 1)
    response = min(ASSUMED_RESPONSE, max_length - prompt)
    return Lengths(
        prompts=np.array([prompt]),
        responses=np.full((1, num_responses), response),
        num_records=None,
        said_by=f"{num_responses} responses of {response} tokens to prompts of {prompt}",
        is_assumed=True,
    )


def _cached(source: OpenedSource, section: DataSection, encoder: Encoder) -> Shard | None:
    cache = section.cache_folder()
    folder = records_folder(source.section, source.parts, invalid=section.invalid, cache=cache)
    if not folder.is_dir():
        return None
    records = RecordFile(folder, source.part_names)
    folder = tokens_folder(records, encoder, _options(source, section, records), cache)
    return Shard(folder, source.part_names) if folder.is_dir() else None


def _sampled(source: OpenedSource, section: DataSection, encoder: Encoder, cache: Path) -> Shard:
    """The tokens of a source's first rows, in a cache of their own."""
    records = load_records(
        source.section,
        _first_rows(source.parts),
        key=source.key,
        invalid=section.invalid,
        cache=cache,
        part_names=source.part_names,
        on_rows=lambda _: None,
    )
    return load_tokens(
        records,
        encoder,
        _options(source, section, records),
        cache=cache,
        num_workers=1,
        on_records=lambda _: None,
    )


def _options(source: OpenedSource, section: DataSection, records: RecordFile) -> TokenOptions:
    has_weights = records.info.has_token_weights
    return TokenOptions.of(section, role=source.section.role, has_token_weights=has_weights)


def _first_rows(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with so many rows that a source has its sample in all."""
    most = -(-_SAMPLED_ROWS // len(parts))
    return tuple(replace(part, rows=partial(_first, part, most)) for part in parts)


def _first(part: Part, most: int) -> Iterator[tuple[int, Row]]:
    return islice(part.rows(), most)


def _of_store(store: TokenStore, *, is_whole: bool, said_by: str) -> Lengths:
    counts = store.num_responses
    slots = np.arange(counts.max())
    where = slots < counts[:, None]
    # Slots beyond the last response point anywhere; the mask covers them.
    positions = np.where(where, store.first_responses[:-1, None] + slots, 0)
    return Lengths(
        prompts=np.array(store.prompt_lengths),
        responses=np.where(where, store.all_response_lengths[positions], 0),
        num_records=len(store) if is_whole else None,
        said_by=said_by,
    )
