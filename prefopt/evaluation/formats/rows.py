"""What the official formats have in common: rows with places, and texts of checked types."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.data.files import file_rows
from prefopt.errors import UserError


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSON array or of JSON lines, each with its place.

    Raises:
        UserError: if the file is absent, empty or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    num = 0
    for num, row in file_rows(path):
        yield f"{path}:{num}", row
    if num == 0:
        raise UserError(f"{path}: the file is empty. Give one with rows.")


def text_in(row: Mapping[str, Any], key: str, place: str) -> str:
    """A text that must be there.

    Raises:
        UserError: if it is not.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{place}: {key} must be a text, got {value!r:.60}. Mend the row.")
    return value


def number_in(row: Mapping[str, Any], key: str, place: str) -> int | float:
    """A number that must be there.

    Raises:
        UserError: if it is not.
    """
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{place}: {key} must be a number, got {value!r:.60}. Mend the row.")
    return value
