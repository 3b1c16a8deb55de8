"""Reference log-probs of one source on disk: pieces that are whole or absent, mapped when read.

A piece holds the float32 log-probs of all response tokens of up to 512 records, in the order of the
source's `response_tokens`, behind a header with its range and a checksum. Whoever is killed loses
the piece in the making; what is there is never written again.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import torch
import xxhash
from filelock import FileLock
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError

from prefopt.data.cache import errors_of_cache_are_one_line
from prefopt.data.identity import digest
from prefopt.data.shard import Shard

RECORDS_PER_PIECE = 512
"""What a killed process loses at most, and what ranks share at a time."""

PieceState = Literal["whole", "missing", "broken"]

_ABOUT = "about.json"
_MAGIC = b"prefref1"
_HEADER = struct.Struct("<8sQQQ16s")
"""Magic, first record, the one after the last, number of tokens, xxh3 of these three and the data;
48 bytes, so that the numbers behind it are aligned."""
_RANGE = struct.Struct("<QQQ")


class About(BaseModel):
    """What a folder holds, for people and for `prefopt cache`."""

    model_config = ConfigDict(frozen=True)

    facts: dict[str, str]
    """What the numbers depend on, and the folder's name is made of."""
    num_records: int
    num_tokens: int
    model: str
    """Where the reference came from, and the source: of interest, but their content counts."""
    source: str
    made: str
    """Time at which the folder was begun, ISO 8601."""


class ReferenceFolder:
    """The pieces of one source under one reference: `<cache>/reference/<key>`."""

    def __init__(self, folder: Path, num_records: int) -> None:
        """Looks at nothing yet; the folder need not exist."""
        self.folder = folder
        self.num_records = num_records

    @property
    def num_pieces(self) -> int:
        """All pieces, whether or not they are there."""
        return -(-self.num_records // RECORDS_PER_PIECE)

    @property
    def pieces(self) -> Sequence[int]:
        """Their numbers."""
        return range(self.num_pieces)

    def records_of(self, piece: int) -> range:
        """The records of the source that a piece is about."""
        first = piece * RECORDS_PER_PIECE
        return range(first, min(first + RECORDS_PER_PIECE, self.num_records))

    def path(self, piece: int) -> Path:
        """The file of a piece."""
        return self.folder / f"piece-{piece:06d}.bin"

    def begin(self, about: About) -> None:
        """Make the folder, say what is in it, and remove what a killed process left half-written.

        Raises:
            UserError: if the disk is full or the cache cannot be written.
        """
        with errors_of_cache_are_one_line(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.partial"):
                left.unlink(missing_ok=True)
        if read_about(self.folder) is None:
            self._write(self.folder / _ABOUT, [about.model_dump_json(indent=2).encode()])

    def write(self, piece: int, logps: Float[np.ndarray, " N"]) -> None:
        """Store a piece, whole or not at all.

        Raises:
            UserError: if the disk is full or the cache cannot be written.
        """
        records = self.records_of(piece)
        data = np.ascontiguousarray(logps, dtype="<f4").tobytes()
        scope = _RANGE.pack(records.start, records.stop, len(logps))
        checksum = xxhash.xxh3_128_digest(scope + data)
        header = _HEADER.pack(_MAGIC, records.start, records.stop, len(logps), checksum)
        self._write(self.path(piece), [header, data])

    def state(self, piece: int) -> PieceState:
        """Whether a piece is there and its checksum is right; reads it all."""
        path = self.path(piece)
        if not path.is_file():
            return "missing"
        content = path.read_bytes()
        if len(content) < _HEADER.size:
            return "broken"
        magic, first, stop, num_tokens, checksum = _HEADER.unpack_from(content)
        data = content[_HEADER.size :]
        is_whole = (
            magic == _MAGIC
            and range(first, stop) == self.records_of(piece)
            and len(data) == 4 * num_tokens
            and checksum == xxhash.xxh3_128_digest(_RANGE.pack(first, stop, num_tokens) + data)
        )
        return "whole" if is_whole else "broken"

    def states(self) -> list[PieceState]:
        """Of all pieces."""
        return [self.state(piece) for piece in self.pieces]

    def lock(self) -> FileLock:
        """Held by the run that computes; another one waits and finds the work done."""
        with errors_of_cache_are_one_line(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.folder}.lock")

    def _write(self, path: Path, parts: Sequence[bytes]) -> None:
        partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
        with errors_of_cache_are_one_line(self.folder):
            try:
                with partial.open("xb") as file:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            descriptor = os.open(path.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


class ReferenceColumn:
    """Reference log-probs of a source's response tokens, mapped from pieces that are all whole."""

    def __init__(self, folder: ReferenceFolder, shard: Shard) -> None:
        """Maps every piece at once: the files may be removed while they are read."""
        self._folder = folder
        self._shard = shard
        first_tokens = shard.response_starts[shard.first_responses]
        self._first_tokens = first_tokens
        self._piece_maps = [
            self._map(piece, int(first_tokens[records.stop] - first_tokens[records.start]))
            for piece in folder.pieces
            for records in [folder.records_of(piece)]
        ]

    def of_record(self, number: int) -> Float[torch.Tensor, " N"]:
        """Log-probs of all response tokens of a record of the source, end to end; a copy."""
        piece = number // RECORDS_PER_PIECE
        begin = self._first_tokens[self._folder.records_of(piece).start]
        start, stop = self._first_tokens[number : number + 2] - begin
        return self._piece_maps[piece][start:stop].clone()

    def __reduce__(self) -> tuple[type["ReferenceColumn"], tuple[ReferenceFolder, Shard]]:
        """Other processes map the files themselves."""
        return ReferenceColumn, (self._folder, self._shard)

    def _map(self, piece: int, num_tokens: int) -> Float[torch.Tensor, " N"]:
        # numpy would keep a file open for each of what may be thousands of pieces.
        header = _HEADER.size // 4
        path = str(self._folder.path(piece))
        mapped = torch.from_file(path, size=header + num_tokens, dtype=torch.float32)
        return mapped[header:]


def reference_folder(cache: Path, facts: Mapping[str, str], num_records: int) -> ReferenceFolder:
    """Where the log-probs lie that depend on these facts.

    Args:
        cache: folder of the cache.
        facts: everything that the numbers depend on, and nothing else.
        num_records: records of the source.
    """
    key = digest(json.dumps(dict(facts), sort_keys=True))
    return ReferenceFolder(cache / "reference" / key, num_records)


def read_about(folder: Path) -> About | None:
    """What a folder says of itself; None if it says nothing that can be read."""
    try:
        return About.model_validate_json((folder / _ABOUT).read_bytes())
    except (OSError, ValidationError):
        return None


def tokens_digest(shard: Shard) -> str:
    """Hash of the tokens of a source and of how they form prompts and responses; not of scores."""
    names = ("prompt_length", "num_responses", "response_length", "prompt_tokens")
    together = "".join(
        xxhash.xxh3_128_hexdigest(np.ascontiguousarray(shard.column(name)).data)
        for name in (*names, "response_tokens")
    )
    return digest(together)
