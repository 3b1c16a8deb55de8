"""What a format is, and how its converter reads a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefopt.errors import UserError
from prefopt.types import Message

Row = dict[str, Any]
"""One raw row: column name -> value, as JSON or Arrow gives it."""


class RowError(UserError):
    """A row that holds no usable record; the reader adds file and row number."""

    def __init__(self, column: str, problem: str, way_out: str = "") -> None:
        super().__init__(f"{column}: {problem}" + (f". {way_out}" if way_out else ""))
        self.column = column
        self.problem = problem
        self.way_out = way_out


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """A record before its checks: what a converter makes of a row."""

    prompt: str | list[Message]
    responses: tuple[str | list[Message], ...]
    scores: tuple[float, ...]
    columns: tuple[str, ...]
    """K names of the places that the responses come from, for error messages."""
    is_graded: bool = False
    """Whether the data gives the scores as numbers, not only an order or a label."""
    token_weights: tuple[tuple[float, ...], ...] | None = None
    """Of each response, a number per token, end-of-sequence included."""


def wrap_text(content: Content) -> Content:
    """The same content with a text prompt as user message and text responses as assistant's."""
    if not isinstance(content.prompt, str):
        return content
    responses: list[str | list[Message]] = [
        [{"role": "assistant", "content": response}] for response in content.responses
    ]
    prompt: list[Message] = [{"role": "user", "content": content.prompt}]
    return replace(content, prompt=prompt, responses=tuple(responses))


def _has_required(row: Row, required: Sequence[str]) -> bool:
    return all(name in row for name in required)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A way to lay out preferences in columns."""

    name: str
    required: tuple[str, ...]
    """Columns without which a row cannot be read."""
    optional: tuple[str, ...] = ()
    """Further columns that are read where they are there."""
    convert: Callable[[Row], Content]
    """A row to a record's content; raises RowError."""
    matches: Callable[[Row], bool] = field(default=lambda row: True)
    """Whether a row with the required columns is of this format."""
    to_messages: Callable[[Content], Content] = wrap_text
    """What `as_messages` does to text."""
    group_by: str | None = None
    """Consecutive rows with the same value here are one record; `convert` then gets
    `{group_by: value, "rows": [...]}`."""

    def accepts(self, row: Row) -> bool:
        """Whether a row looks like this format."""
        return _has_required(row, self.required) and self.matches(row)
