"""Where rows come from: files, folders, saved data sets, the hub."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import datasets.exceptions

from prefopt.data.files import SUFFIXES, content_hash, file_rows
from prefopt.data.formats import Row
from prefopt.data.section import SourceSection
from prefopt.errors import UserError, did_you_mean

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATASET_ROWS = 1000
_MOST_NAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file, or one split of a data set: rows that can be read again and again."""

    name: str
    """Short name, the first half of record ids."""
    place: str
    """What error messages call it."""
    fingerprint: str
    """Hash of its content."""
    rows: Callable[[], Iterator[tuple[int, Row]]]
    """Rows with their numbers, from 1."""


def open_source(source: SourceSection, key: str) -> tuple[Part, ...]:
    """The parts of a source; `key` is where the recipe names it, like `data.sources[0]`.

    Raises:
        UserError: if nothing is there, it is empty, or `name` or `split` would have no effect.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        _refuse(source, key, "name", "split", what="a file")
        _check_suffix(path, key)
        return (_file_part(path, path.name),)
    if path.is_dir():
        _refuse(source, key, "name", what="a folder")
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return (_saved_part(path, source, key),)
        return _folder_parts(path, source, key)
    if _looks_like_a_path(source.path):
        raise UserError(f"{key}.path: no file or folder '{source.path}'. {_near(path)}")
    return (_hub_part(source, key),)


def _refuse(source: SourceSection, key: str, *names: str, what: str) -> None:
    for name in names:
        if getattr(source, name) is not None:
            raise UserError(
                f"{key}.{name}: has no effect, '{source.path}' is {what}. Remove the key."
            )


def _check_suffix(path: Path, key: str) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{key}.path: cannot read '{path}'. Known endings: {', '.join(SUFFIXES)}.")


def _file_part(path: Path, name: str) -> Part:
    return Part(
        name=name,
        place=str(path),
        fingerprint=content_hash(path),
        rows=lambda: file_rows(path),
    )


def _folder_parts(folder: Path, source: SourceSection, key: str) -> tuple[Part, ...]:
    """All files of the split, by `<split>.jsonl` or `<split>-00000-of-00002.parquet`.

    Without files of such a name, and without `split`, every file counts.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES)
    if not files:
        raise UserError(f"{key}.path: '{folder}' holds no {', '.join(SUFFIXES)} file.")
    split = source.split or "train"
    of_split = re.compile(rf"{re.escape(split)}([-_.].*)?")
    chosen = [file for file in files if of_split.fullmatch(file.stem)]
    if not chosen and source.split is not None:
        names = ", ".join(file.name for file in files[:_MOST_NAMES])
        raise UserError(f"{key}.split: no file of '{folder}' is named '{split}': {names}.")
    return tuple(_file_part(file, file.relative_to(folder).as_posix()) for file in chosen or files)


def _saved_part(folder: Path, source: SourceSection, key: str) -> Part:
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}.path: '{folder}' cannot be loaded: {_line(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        split = source.split or "train"
        if split not in loaded:
            raise UserError(f"{key}.split: no split '{split}'. {did_you_mean(split, loaded)}")
        return _dataset_part(loaded[split], f"{folder.name}/{split}", str(folder / split))
    _refuse(source, key, "split", what="a data set without splits")
    return _dataset_part(loaded, folder.name, str(folder))


def _hub_part(source: SourceSection, key: str) -> Part:
    split = source.split or "train"
    try:
        loaded = datasets.load_dataset(source.path, source.name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{key}.path: '{source.path}' is no file or folder, and loading it from the hub "
            f"failed: {_line(error)}"
        ) from error
    name = "/".join(filter(None, (source.path, source.name, split)))
    return _dataset_part(loaded, name, name)


def _dataset_part(dataset: datasets.Dataset, name: str, place: str) -> Part:
    return Part(
        name=name,
        place=place,
        fingerprint=dataset._fingerprint,
        rows=lambda: _dataset_rows(dataset.with_format(None)),
    )


def _dataset_rows(dataset: datasets.Dataset) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in dataset.iter(batch_size=_DATASET_ROWS):
        columns: dict[str, list[Any]] = batch
        for values in zip(*columns.values(), strict=True):
            number += 1
            yield number, dict(zip(columns, values, strict=True))


def _looks_like_a_path(path: str) -> bool:
    return Path(path).suffix in SUFFIXES or not _HUB_ID.fullmatch(path)


def _near(path: Path) -> str:
    """What lies beside a missing file."""
    folder = path.parent
    if not folder.is_dir():
        return f"The folder '{folder}' is not there either."
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return f"The folder '{folder}' is empty."
    near = difflib.get_close_matches(path.name, names, n=_MOST_NAMES) or names[:_MOST_NAMES]
    return f"Near it: {', '.join(near)}."


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
