"""Tokenised records of all sources, read from disk one at a time."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import SupportsIndex, overload

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int, Shaped, UInt

from prefopt.data.reference_cache import ReferenceColumn
from prefopt.data.shard import Shard, starts
from prefopt.types import TokenizedRecord


class TokenStore(Sequence[TokenizedRecord]):
    """Records in a fixed order, memory-mapped.

    Lengths and scores are arrays that never touch a token. Flat arrays hold the responses of all
    records end to end; `first_responses[i]` is where record i starts in them.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        indices: Int[np.ndarray, " n"] | None = None,
        reference_columns: Sequence[ReferenceColumn] | None = None,
    ) -> None:
        """Records of some shards, one per source.

        Args:
            shards: the sources, in order.
            indices: which records of all shards laid end to end, in this order; None means all.
            reference_columns: reference log-probs of each shard's tokens, if they are known.
        """
        self.shards = tuple(shards)
        self._reference_columns = reference_columns
        total = sum(len(shard) for shard in self.shards)
        self._indices = np.arange(total) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: SupportsIndex) -> TokenizedRecord: ...

    @overload
    def __getitem__(self, index: slice) -> "TokenStore": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "TokenizedRecord | TokenStore":
        """One record as int64 tensors, or a store of several."""
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        source, local = self._locate(index)
        shard = self.shards[source]
        first, stop = shard.first_responses[local : local + 2]
        edges = shard.response_starts[first : stop + 1]
        tokens = shard.column("response_tokens")
        begin, end = shard.prompt_starts[local : local + 2]
        reference_logps = None
        if self._reference_columns is not None:
            of_record = self._reference_columns[source].of_record(local)
            reference_logps = of_record.split(np.diff(edges).tolist())
        return TokenizedRecord(
            id=self._id(source, local),
            prompt_ids=_tensor(shard.column("prompt_tokens")[begin:end]),
            response_ids=tuple(_tensor(tokens[start:end]) for start, end in pairwise(edges)),
            scores=tuple(shard.column("score")[first:stop].tolist()),
            token_weights=self._weights(shard, edges) if self.has_token_weights else None,
            reference_logps=reference_logps,
        )

    @cached_property
    def has_token_weights(self) -> bool:
        """Whether any source gives weights of tokens; where another gives none, they are 1."""
        return any(len(shard.column("token_weight")) > 0 for shard in self.shards)

    def _weights(
        self, shard: Shard, edges: Int[np.ndarray, " m"]
    ) -> tuple[Float[torch.Tensor, " _"], ...]:
        weights = shard.column("token_weight")
        if len(weights) == 0:
            return tuple(torch.ones(int(stop - start)) for start, stop in pairwise(edges))
        return tuple(
            torch.from_numpy(weights[start:stop].copy()) for start, stop in pairwise(edges)
        )

    def subset(self, indices: Int[np.ndarray, " m"] | Iterable[int]) -> "TokenStore":
        """The records at these positions of this store, in this order; no token is copied."""
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64)
        return TokenStore(self.shards, self._indices[indices], self._reference_columns)

    def with_reference(self, columns: Sequence[ReferenceColumn]) -> "TokenStore":
        """The same records, each with its reference log-probs; a column per shard."""
        return TokenStore(self.shards, self._indices, columns)

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the records, `file:row`."""
        return tuple(self.record_id(index) for index in range(len(self)))

    def record_id(self, index: SupportsIndex) -> str:
        """Name of one record, `file:row`."""
        return self._id(*self._locate(index))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokens, scores and order of the records."""
        digest = xxhash.xxh3_128()
        for shard in self.shards:
            digest.update(shard.info.fingerprint.encode())
        digest.update(np.ascontiguousarray(self._indices, dtype=np.int64).tobytes())
        return digest.hexdigest()

    @cached_property
    def prompt_lengths(self) -> Int[np.ndarray, " n"]:
        """Prompt tokens of each record."""
        return self._per_record("prompt_length").astype(np.int64)

    @cached_property
    def num_responses(self) -> Int[np.ndarray, " n"]:
        """K of each record."""
        return self._per_record("num_responses").astype(np.int64)

    @cached_property
    def source_of_record(self) -> Int[np.ndarray, " n"]:
        """Number of the source that each record comes from."""
        sizes = [len(shard) for shard in self.shards]
        return np.repeat(np.arange(len(sizes)), sizes)[self._indices]

    @property
    def records_per_source(self) -> tuple[int, ...]:
        """Records of each source; they lie in this order unless a subset mixed them."""
        return tuple(np.bincount(self.source_of_record, minlength=len(self.shards)).tolist())

    @cached_property
    def first_responses(self) -> Int[np.ndarray, " m"]:
        """N + 1 positions in the flat arrays: record i has those from [i] up to [i + 1]."""
        return starts(self.num_responses)

    @cached_property
    def all_response_lengths(self) -> Int[np.ndarray, " r"]:
        """Tokens of every response, end to end."""
        return self._per_response("response_length").astype(np.int64)

    @cached_property
    def all_scores(self) -> Float[np.ndarray, " r"]:
        """Scores of every response, end to end."""
        return self._per_response("score")

    def response_lengths(self, index: SupportsIndex) -> Int[np.ndarray, " K"]:
        """Tokens of each response of one record."""
        return self.all_response_lengths[self._responses(index)]

    def scores(self, index: SupportsIndex) -> Float[np.ndarray, " K"]:
        """Scores of one record."""
        return self.all_scores[self._responses(index)]

    @property
    def largest_token(self) -> int:
        """The largest token id in the files; a model needs embeddings for it."""
        names = ("prompt_tokens", "response_tokens")
        return max(int(shard.column(name).max()) for shard in self.shards for name in names)

    @property
    def prompt_hashes(self) -> UInt[np.ndarray, " n"]:
        """Equal for records of the same prompt."""
        return self._per_record("prompt_hash")

    @property
    def content_hashes(self) -> UInt[np.ndarray, " n"]:
        """Equal for records of the same prompt and responses."""
        return self._per_record("content_hash")

    @property
    def flags(self) -> UInt[np.ndarray, " n"]:
        """Bits of prefopt.data.shard per record."""
        return self._per_record("flags")

    def _responses(self, index: SupportsIndex) -> slice:
        position = range(len(self))[index]
        return slice(*self.first_responses[position : position + 2])

    def _locate(self, index: SupportsIndex) -> tuple[int, int]:
        """Source of a record and its number there."""
        position = int(self._indices[range(len(self))[index]])
        source = int(np.searchsorted(self._shard_starts, position, side="right")) - 1
        return source, position - int(self._shard_starts[source])

    def _id(self, source: int, local: int) -> str:
        shard = self.shards[source]
        return f"{shard.part_names[shard.column('part')[local]]}:{shard.column('row')[local]}"

    @cached_property
    def _shard_starts(self) -> Int[np.ndarray, " _"]:
        return starts(np.array([len(shard) for shard in self.shards]))

    def _per_record(self, name: str) -> Shaped[np.ndarray, " n"]:
        chosen: Shaped[np.ndarray, " n"] = self._joined(name)[self._indices]
        return chosen

    def _per_response(self, name: str) -> Shaped[np.ndarray, " r"]:
        first = starts(self._joined("num_responses"))[self._indices]
        # Positions of the wanted pieces: from each piece's start, counting up within it.
        shift = first - self.first_responses[:-1]
        positions = np.repeat(shift, self.num_responses) + np.arange(self.first_responses[-1])
        chosen: Shaped[np.ndarray, " r"] = self._joined(name)[positions]
        return chosen

    def _joined(self, name: str) -> Shaped[np.ndarray, " _"]:
        """A column of all shards, end to end."""
        return np.concatenate([shard.column(name) for shard in self.shards])


def _tensor(tokens: Int[np.ndarray, " _"]) -> Int[torch.Tensor, " _"]:
    return torch.from_numpy(tokens.astype(np.int64))
