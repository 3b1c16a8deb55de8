"""Raw rows of JSON, JSON lines and parquet files, with exact positions and constant memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import xxhash

from prefopt.data.formats import Row
from prefopt.data.json_array import BrokenJson, elements
from prefopt.errors import UserError

SUFFIXES = (".json", ".jsonl", ".parquet")
"""Endings of the files that can be read."""

_BLOCK = 1 << 20
_PARQUET_ROWS = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def content_hash(path: Path) -> str:
    """Hash of a file's bytes.

    Raises:
        UserError: if it cannot be read, or is empty.
    """
    digest = xxhash.xxh3_128()
    num_bytes = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                num_bytes += len(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if num_bytes == 0:
        raise UserError(f"{path}: the file is empty. Point data.sources at a file with rows.")
    return digest.hexdigest()


def file_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with their numbers from 1: lines in JSON lines, rows in JSON arrays and parquet.

    Raises:
        UserError: where the file cannot be parsed, naming line and column.
    """
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix == ".json" and _starts_with_bracket(path):
        return _array_rows(path)
    return _line_rows(path)


def _starts_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _line_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = _decoded(raw, path, number)
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken_json(path, number, error.colno, error.msg) from error
            yield number, _as_row(value, f"{path}:{number}")


def _array_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        for number, value in enumerate(elements(path), 1):
            yield number, _as_row(value, f"{path}:{number}")
    except BrokenJson as error:
        raise _broken_json(path, error.line, error.column, error.problem) from error
    except UnicodeDecodeError:
        # The decoder knows the place in its buffer only: find the line.
        with path.open("rb") as file:
            for line_number, raw in enumerate(file, 1):
                _decoded(raw, path, line_number)
        raise


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path}: broken parquet file: {problem}. Write it again.") from error


def _decoded(raw: bytes, path: Path, line: int) -> str:
    if line == 1:
        raw = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{line}: not UTF-8 at byte {error.start + 1} of the line. "
            "Convert the file, for instance: iconv -f LATIN1 -t UTF-8 OLD > NEW."
        ) from error


def _broken_json(path: Path, line: int, column: int, problem: str) -> UserError:
    return UserError(
        f"{path}:{line}: broken JSON at column {column}: {problem}. Repair or remove the line."
    )


def _as_row(value: object, where: str) -> Row:
    if isinstance(value, dict):
        return value
    raise UserError(
        f"{where}: a row must be a JSON object with named columns, got {type(value).__name__}. "
        "Write {...} with a key per column."
    )
