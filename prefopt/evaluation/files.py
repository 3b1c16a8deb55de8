"""Files that grow line by line and survive a kill, and files that appear whole."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from prefopt.errors import UserError


class Lines:
    """An append-only file of JSON lines: what a killed process left of a line is dropped.

    Every line is handed to the operating system at once, so a kill loses the one being written; a
    power cut may lose those of the last seconds. One process writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (length := _length_of_whole_lines(path)) < path.stat().st_size:
            os.truncate(path, length)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Wait for the disk, and close."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line without its end is passed over.

    Raises:
        UserError: if the file is absent or a whole line is no JSON object, with its number.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                last = _parse(line)
                if last is None:
                    return
                yield last
                continue
            value = _parse(line)
            if value is None:
                raise UserError(f"{path}:{number}: not a JSON object. Mend or remove the line.")
            yield value


def write_whole(path: Path, text: str) -> None:
    """Write a file; it is the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f".{path.name}.growing")
    growing.write_text(text, encoding="utf-8")
    with growing.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(growing, path)


def write_json(path: Path, value: Any) -> None:
    """Write plain values, indented, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file of JSON lines."""
    write_whole(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in values))


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _length_of_whole_lines(path: Path) -> int:
    """Bytes up to and with the last line end."""
    with path.open("rb") as file:
        return file.read().rfind(b"\n") + 1
