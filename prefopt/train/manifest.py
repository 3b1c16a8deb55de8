"""What a finished checkpoint holds, file by file: written last, compared before a run goes on."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from prefopt.train.durable import sync

MANIFEST = "manifest.json"


class _File(BaseModel):
    """A file as it was saved."""

    model_config = ConfigDict(frozen=True)

    num_bytes: int
    xxh3_128: str


_FILES = TypeAdapter(dict[str, _File])


def write_manifest(folder: Path) -> None:
    """List all files of a folder with sizes and checksums, once the disk holds each of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        facts = list(pool.map(_synced, files))
    names = [file.relative_to(folder).as_posix() for file in files]
    manifest = folder / MANIFEST
    manifest.write_bytes(_FILES.dump_json(dict(zip(names, facts, strict=True)), indent=2))
    sync(manifest)
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync(path)


def problem_of(folder: Path) -> str | None:
    """What keeps a folder from being what was saved, reading all of it; None if nothing does."""
    try:
        files = _FILES.validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValidationError:
        return f"{MANIFEST} is damaged"
    for name, saved in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        size = (folder / name).stat().st_size
        if size != saved.num_bytes:
            return f"{name} has {size:,} bytes instead of {saved.num_bytes:,}"
    names = list(files)
    with ThreadPoolExecutor() as pool:
        checksums = list(pool.map(lambda name: _checksum(folder / name), names))
    for name, checksum in zip(names, checksums, strict=True):
        if checksum != files[name].xxh3_128:
            return f"{name} is not what was saved, by its checksum"
    return None


def _synced(file: Path) -> _File:
    sync(file)
    return _File(num_bytes=file.stat().st_size, xxh3_128=_checksum(file))


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return str(hashlib.file_digest(opened, xxhash.xxh3_128).hexdigest())
