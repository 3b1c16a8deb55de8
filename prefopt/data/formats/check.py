"""From a row to a checked record: the one place where a response is called unusable."""

import json
from collections.abc import Mapping
from typing import Any

from prefopt.data.formats.base import Content, Format, Row, RowError
from prefopt.types import Message, PreferenceRecord

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that any format of messages may have."""


def to_record(format: Format, row: Row, record_id: str, *, as_messages: bool) -> PreferenceRecord:
    """The record that a row holds.

    Raises:
        RowError: if it holds none; the column is named as the format names it.
    """
    content = format.convert(row)
    if as_messages:
        if not isinstance(content.prompt, str):
            raise RowError("prompt", "holds messages already", "Remove as_messages from the source")
        content = format.to_messages(content)
    _check_responses(content)
    tools = _tools(row.get("tools"))
    template_kwargs = _template_kwargs(row.get("chat_template_kwargs"))
    if isinstance(content.prompt, str):
        if tools or template_kwargs:
            raise RowError(
                "tools" if tools else "chat_template_kwargs",
                "has no effect on plain text",
                "Set as_messages: true on the source, or hide the column",
            )
    elif not content.prompt:
        raise RowError("prompt", "holds no message")
    return PreferenceRecord(
        id=record_id,
        prompt=content.prompt,
        responses=content.responses,
        scores=content.scores,
        is_graded=content.is_graded,
        token_weights=content.token_weights,
        tools=tools,
        template_kwargs=template_kwargs,
    )


def _check_responses(content: Content) -> None:
    if not content.responses:
        raise RowError("responses", "holds no response")
    for response, column in zip(content.responses, content.columns, strict=True):
        if isinstance(response, str):
            if not response.strip():
                raise RowError(column, "is empty")
        else:
            _check_turns(response, column)


def _check_turns(response: list[Message], column: str) -> None:
    if not response:
        raise RowError(column, "holds no message after the prompt")
    last = response[-1]
    if last["role"] != "assistant":
        raise RowError(column, f"must end in a turn of the assistant, got '{last['role']}'")
    if not _said(last["content"]).strip() and not last.get("tool_calls"):
        raise RowError(column, "is empty")


def _said(content: object) -> str:
    """The text of a message's content, which is text or a list of text parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content)


def _tools(value: object) -> list[Any] | None:
    tools = _parsed(value, "tools")
    if tools is not None and not isinstance(tools, list):
        raise RowError("tools", f"must be a list, got {type(tools).__name__}")
    return tools or None


def _template_kwargs(value: object) -> Mapping[str, Any] | None:
    kwargs = _parsed(value, "chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise RowError("chat_template_kwargs", f"must be an object, got {type(kwargs).__name__}")
    return kwargs or None


def _parsed(value: object, column: str) -> object:
    """The value, read from JSON where it is text; empty text is None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed: object = json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(column, f"is no JSON: {error.msg}") from error
    return parsed
