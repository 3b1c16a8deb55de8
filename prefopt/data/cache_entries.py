"""What lies in the cache folder, whether it is whole, and how it is removed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from prefopt.data.reference_cache import About, ReferenceFolder, read_about

Kind = Literal["reference", "tokens", "records"]
KINDS: tuple[Kind, ...] = ("reference", "tokens", "records")
_LEFT_OVER = ".partial"
"""The end of the name of a folder that is being made, or removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheEntry:
    """One folder of the cache."""

    kind: Kind
    folder: Path
    about: About | None
    """What reference log-probs are about; other kinds say nothing."""
    num_bytes: int
    written: float
    """When something was last written, in seconds since the epoch."""

    @property
    def key(self) -> str:
        """The name by which it can be removed."""
        return self.folder.name

    @property
    def share(self) -> float:
        """How much of it is there, in [0, 1], by the names of files alone."""
        if self.kind != "reference":
            return float(not self.key.endswith(_LEFT_OVER))
        if self.about is None:
            return 0.0
        folder = ReferenceFolder(self.folder, self.about.num_records)
        done = sum(
            len(folder.records_of(piece)) for piece in folder.pieces if folder.path(piece).is_file()
        )
        return done / self.about.num_records

    def problem(self) -> str | None:
        """What is wrong with it, after reading it where there are checksums; None: nothing."""
        if self.kind != "reference":
            return "unfinished" if self.share < 1 else None
        if self.about is None:
            return "about.json is missing or damaged"
        states = ReferenceFolder(self.folder, self.about.num_records).states()
        damaged, missing = states.count("broken"), states.count("missing")
        found = [f"{damaged} damaged"] * bool(damaged) + [f"{missing} missing"] * bool(missing)
        return f"{' and '.join(found)} of {len(states)} pieces" if found else None

    def remove(self) -> bool:
        """Remove it in one go; False, and nothing happens, while a run is writing it."""
        lock = FileLock(f"{self.folder.with_name(self.key.removesuffix(_LEFT_OVER))}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        with lock:
            leaving = self.folder
            if not self.key.endswith(_LEFT_OVER):
                # Under its own name, half of it could be taken for the whole.
                leaving = self.folder.with_name(f"{self.key}{_LEFT_OVER}")
                shutil.rmtree(leaving, ignore_errors=True)
                self.folder.rename(leaving)
            shutil.rmtree(leaving)
        lock.release()
        return True


def cache_entries(cache: Path) -> list[CacheEntry]:
    """Everything in a cache folder, by kind and then newest first."""
    found = [entry for kind in KINDS for entry in _entries_of(cache, kind)]
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), -entry.written))


def _entries_of(cache: Path, kind: Kind) -> Iterator[CacheEntry]:
    if not (cache / kind).is_dir():
        return
    for folder in (cache / kind).iterdir():
        if not folder.is_dir():
            continue
        stats = [path.stat() for path in (folder, *folder.rglob("*"))]
        yield CacheEntry(
            kind=kind,
            folder=folder,
            about=read_about(folder) if kind == "reference" else None,
            num_bytes=sum(status.st_size for status in stats[1:]),
            written=max(status.st_mtime for status in stats),
        )
