"""Checked values of a row: text, numbers, labels, messages."""

import json
import math
from collections.abc import Mapping
from typing import cast

from prefopt.data.formats.base import Row, RowError
from prefopt.types import Message

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def value_at(row: Row, column: str) -> object:
    """The value of a column that must be there."""
    if column not in row:
        raise RowError(column, "missing column", f"The row has: {', '.join(row) or 'none'}")
    return cast(object, row[column])


def text(value: object, column: str) -> str:
    """The value, which must be text."""
    if not isinstance(value, str):
        raise RowError(column, f"must be text, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(column, "holds half of a surrogate pair, which is no text") from error
    return value


def text_at(row: Row, column: str) -> str:
    """The text in a column that must be there."""
    return text(value_at(row, column), column)


def number(value: object, column: str) -> float:
    """The value, which must be a finite number or a boolean."""
    if not isinstance(value, bool | int | float):
        raise RowError(column, f"must be a number, got {_kind(value)}")
    if not math.isfinite(value):
        raise RowError(column, f"must be a finite number, got {float(value)}")
    return float(value)


def label_at(row: Row, column: str) -> float:
    """1.0 or 0.0 from a label that must be true, false, 1 or 0."""
    value = number(value_at(row, column), column)
    if value not in (0.0, 1.0):
        raise RowError(column, f"must be true, false, 1 or 0, got {value:g}")
    return value


def list_at(row: Row, column: str) -> list[object]:
    """The list in a column that must be there."""
    value = value_at(row, column)
    if isinstance(value, list):
        return value
    raise RowError(column, f"must be a list, got {_kind(value)}")


def table(value: object, column: str) -> Row:
    """The value, which must be an object with named fields."""
    if isinstance(value, dict):
        return value
    raise RowError(column, f"must be an object with named fields, got {_kind(value)}")


def messages(value: object, column: str) -> list[Message]:
    """A list of messages with `role` and `content`; one message alone is a list of one.

    Fields that are None are left out: tables give every message the fields of all messages.
    """
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise RowError(column, f"must be a list of messages, got {_kind(value)}")
    return [_message(turn, f"{column}[{number}]") for number, turn in enumerate(turns)]


def text_or_messages(value: object, column: str) -> str | list[Message]:
    """Text as it is, or checked messages."""
    if isinstance(value, str):
        return text(value, column)
    if isinstance(value, list | dict):
        return messages(value, column)
    raise RowError(column, f"must be text or messages, got {_kind(value)}")


def sharegpt_messages(value: object, column: str) -> list[Message]:
    """Messages from turns with `from` and `value`; text is one turn of the assistant."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": text(value, column)}]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise RowError(column, f"must be a list of turns, got {_kind(value)}")
    return [_sharegpt_turn(turn, f"{column}[{number}]") for number, turn in enumerate(turns)]


def _sharegpt_turn(turn: object, column: str) -> Message:
    fields = table(turn, column)
    speaker = text_at_path(fields, "from", column)
    content = text_at_path(fields, "value", column)
    role = _SHAREGPT_ROLES.get(speaker)
    if role is None:
        raise RowError(
            f"{column}.from", f"unknown role '{speaker}'", f"Known: {', '.join(_SHAREGPT_ROLES)}"
        )
    if speaker == "function_call":
        return {"role": role, "content": "", "tool_calls": _tool_calls(content, column)}
    return {"role": role, "content": content}


def _tool_calls(content: str, column: str) -> list[object]:
    try:
        calls = json.loads(content)
    except json.JSONDecodeError as error:
        raise RowError(f"{column}.value", f"a function_call must be JSON: {error.msg}") from error
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def text_at_path(fields: Row, name: str, column: str) -> str:
    """The text in a field of an object that sits in a column."""
    if name not in fields:
        raise RowError(f"{column}.{name}", "missing field", f"It has: {', '.join(fields)}")
    return text(fields[name], f"{column}.{name}")


def _message(turn: object, column: str) -> Message:
    fields = {name: part for name, part in table(turn, column).items() if part is not None}
    role = text_at_path(fields, "role", column)
    if not role.strip():
        raise RowError(f"{column}.role", "is empty")
    content = fields.get("content")
    if content is None and "tool_calls" in fields:
        return {**fields, "content": ""}
    if isinstance(content, list):
        _check_parts(content, f"{column}.content")
        return fields
    text_at_path(fields, "content", column)
    return fields


def _check_parts(parts: list[object], column: str) -> None:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise RowError(column, "holds a part that is not text", "prefopt trains text models")


def _kind(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'no fields'}"
    return f"{type(value).__name__} {str(value)[:40]!r}"
