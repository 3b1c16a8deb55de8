"""Tokens of one source on disk: flat columns that are appended to once and memory-mapped after."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from jaxtyping import Shaped
from pydantic import BaseModel, ConfigDict

from prefopt.data.identity import digest

COLUMNS: dict[str, type[np.generic]] = {
    "prompt_length": np.int32,
    "num_responses": np.int32,
    "part": np.int32,
    "row": np.int64,
    "prompt_hash": np.uint64,
    "content_hash": np.uint64,
    "flags": np.uint8,
    "response_length": np.int32,
    "score": np.float64,
    "prompt_tokens": np.int32,
    "response_tokens": np.int32,
    "token_weight": np.float32,
}
"""The columns: seven with a value per record, two per response, two per token; the last one, a
weight per response token, is empty where the data gives no weights."""

CUT_BEST, CUT_OTHER, MERGED, TEMPLATE_CUT, IDENTICAL, ALL_IDENTICAL, TIED = (
    1 << bit for bit in range(7)
)
"""Bits of `flags`: what was cut, what the boundary needed, what the responses have in common."""

Columns = Mapping[str, Shaped[np.ndarray, " _"]]


class ShardInfo(BaseModel):
    """What does not show in the columns."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    """Hash of all columns."""
    counts: dict[str, int]
    """What was dropped, by reason, and the longest prompt."""


class ShardWriter(ExitStack):
    """Appends batches of columns to the files of a folder, which `with` closes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {
            name: self.enter_context((folder / f"{name}.bin").open("wb")) for name in COLUMNS
        }
        self._digests = {name: xxhash.xxh3_128() for name in COLUMNS}

    def append(self, columns: Columns) -> None:
        """Add a batch; every column must be there in its own dtype."""
        for name, file in self._files.items():
            data = columns[name].tobytes()
            assert columns[name].dtype == COLUMNS[name], name
            file.write(data)
            self._digests[name].update(data)

    def finish(self, counts: Counter[str]) -> None:
        """Write down the counts, after the last batch."""
        digests = "".join(each.hexdigest() for each in self._digests.values())
        info = ShardInfo(fingerprint=digest(digests), counts=dict(counts))
        (self._folder / "info.json").write_text(info.model_dump_json())


class Shard:
    """The tokens of one source, memory-mapped."""

    def __init__(self, folder: Path, part_names: tuple[str, ...]) -> None:
        self.folder = folder
        self.part_names = part_names
        self.info = ShardInfo.model_validate_json((folder / "info.json").read_bytes())

    def __len__(self) -> int:
        return len(self.column("row"))

    def column(self, name: str) -> Shaped[np.ndarray, " _"]:
        """One column, read from disk where it is touched."""
        if name not in self._maps:
            path, dtype = self.folder / f"{name}.bin", COLUMNS[name]
            is_empty = path.stat().st_size == 0
            self._maps[name] = (
                np.empty(0, dtype) if is_empty else np.memmap(path, dtype=dtype, mode="r")
            )
        return self._maps[name]

    @cached_property
    def _maps(self) -> dict[str, Shaped[np.ndarray, " _"]]:
        return {}

    @cached_property
    def prompt_starts(self) -> Shaped[np.ndarray, " _"]:
        """Where each record's prompt tokens start, and where the last end."""
        return starts(self.column("prompt_length"))

    @cached_property
    def first_responses(self) -> Shaped[np.ndarray, " _"]:
        """Number of each record's first response, and the number of all."""
        return starts(self.column("num_responses"))

    @cached_property
    def response_starts(self) -> Shaped[np.ndarray, " _"]:
        """Where each response's tokens start, and where the last end."""
        return starts(self.column("response_length"))

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path, tuple[str, ...]]]:
        """Other processes map the files themselves."""
        return Shard, (self.folder, self.part_names)


def starts(lengths: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " m"]:
    """Where pieces of these lengths start when they lie end to end; n + 1 numbers from 0."""
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends
