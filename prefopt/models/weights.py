"""What weights are, by the content of their files: a model in memory may be sharded or adapted."""

import json
import os
import time
from pathlib import Path
from uuid import uuid4

import xxhash
from transformers.utils.hub import cached_file

from prefopt.errors import UserError

_CONFIGURATIONS = ("config.json", "adapter_config.json")
_BYTES_AT_ONCE = 2**24
_TICK_NS = 2 * 10**9
_FileFacts = tuple[int, int, int, int]
"""Size, time of the last change of content and of anything, inode: another content has others."""


def weights_digest(path: str, key: str, *, revision: str | None = None, memo: Path) -> str:
    """Hash of the files that make a model or an adapter what it computes.

    Weights, configuration and Python code in the top folder count; tokenizer, model card and states
    of training do not. A file's hash is kept and used while nothing about the file has changed.

    Args:
        path: a folder, or a hub id whose files have been loaded before.
        key: where the recipe names it, for messages.
        revision: branch, tag or commit on the hub.
        memo: folder for the hashes of files.

    Raises:
        UserError: if no weights lie there.
    """
    folder = _local_folder(path, revision)
    files = [] if folder is None else _files(folder)
    if folder is None or not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise UserError(
            f"{key}: {path} holds no file of weights (*.safetensors or *.bin), so the cache could "
            "not tell its log-probs from those of another model. Set reference.cache: off."
        )
    memo_file = memo / f"{xxhash.xxh3_128_hexdigest(str(folder.resolve()).encode())}.json"
    known = _remembered(memo_file)
    hashes: dict[str, tuple[_FileFacts, str]] = {}
    for file in files:
        facts = _facts(file)
        kept = known.get(file.name)
        is_known = kept is not None and kept[0] == facts
        hashes[file.name] = kept if kept is not None and is_known else (facts, _hash(file))
    # Two changes within a tick of the file system's clock look alike.
    latest = time.time_ns() - _TICK_NS
    settled = {name: each for name, each in hashes.items() if each[0][2] < latest}
    if settled != known:
        _remember(memo_file, settled)
    together = [(name, file_hash) for name, (_, file_hash) in sorted(hashes.items())]
    return xxhash.xxh3_128_hexdigest(json.dumps(together).encode())


def _local_folder(path: str, revision: str | None) -> Path | None:
    if Path(path).is_dir():
        return Path(path)
    for name in _CONFIGURATIONS:
        found = cached_file(
            path,
            name,
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
        )
        if found is not None:
            return Path(found).parent
    return None


def _files(folder: Path) -> list[Path]:
    """The files that count. Where there are safetensors, transformers reads no .bin."""
    patterns = ["*.safetensors", *_CONFIGURATIONS, "*.index.json", "*.py"]
    if not any(folder.glob("*.safetensors")):
        patterns += ["pytorch_model*.bin", "adapter_model*.bin"]
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _facts(file: Path) -> _FileFacts:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _hash(file: Path) -> str:
    content = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while piece := opened.read(_BYTES_AT_ONCE):
            content.update(piece)
    return content.hexdigest()


def _remembered(memo_file: Path) -> dict[str, tuple[_FileFacts, str]]:
    if not memo_file.is_file():
        return {}
    stored = json.loads(memo_file.read_text("utf-8"))
    return {name: (tuple(facts), file_hash) for name, (facts, file_hash) in stored.items()}


def _remember(memo_file: Path, hashes: dict[str, tuple[_FileFacts, str]]) -> None:
    memo_file.parent.mkdir(parents=True, exist_ok=True)
    partial = memo_file.with_name(f".{memo_file.name}.{uuid4().hex}.partial")
    partial.write_text(json.dumps(hashes), "utf-8")
    os.replace(partial, memo_file)
