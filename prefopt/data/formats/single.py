"""Formats with one response per row: labelled, or something to imitate."""

from prefopt.data.formats.base import Content, Format, Row, RowError
from prefopt.data.formats.read import (
    label_at,
    messages,
    sharegpt_messages,
    text_at,
    text_or_messages,
    value_at,
)
from prefopt.types import Message


def _single(prompt: str | list[Message], response: str | list[Message], column: str) -> Content:
    return Content(prompt=prompt, responses=(response,), scores=(1.0,), columns=(column,))


def _labelled(content: Content, label: float) -> Content:
    return Content(
        prompt=content.prompt,
        responses=content.responses,
        scores=(label,),
        columns=content.columns,
    )


def _convert_completion(row: Row) -> Content:
    prompt = text_or_messages(value_at(row, "prompt"), "prompt")
    response = text_or_messages(value_at(row, "completion"), "completion")
    if isinstance(prompt, str) and not isinstance(response, str):
        raise RowError("prompt", "is text, but completion is not")
    if not isinstance(prompt, str) and isinstance(response, str):
        response = [{"role": "assistant", "content": response}]
    return _single(prompt, response, "completion")


def _last_turn(turns: list[Message], column: str) -> Content:
    if len(turns) < 2:
        raise RowError(column, f"needs a prompt and a response, got {len(turns)} messages")
    return _single(turns[:-1], turns[-1:], f"{column}[{len(turns) - 1}]")


def _convert_conversation(row: Row) -> Content:
    return _last_turn(messages(value_at(row, "messages"), "messages"), "messages")


def _convert_sharegpt(row: Row) -> Content:
    turns = sharegpt_messages(value_at(row, "conversations"), "conversations")
    if row.get("system"):
        turns = [{"role": "system", "content": text_at(row, "system")}, *turns]
    return _last_turn(turns, "conversations")


def _convert_instruction(row: Row) -> Content:
    for column in ("system", "history"):
        if row.get(column):
            raise RowError(
                column, "is not read by this format", "Write such rows as `messages` instead"
            )
    instruction = text_at(row, "instruction")
    more = text_at(row, "input") if row.get("input") else ""
    prompt = f"{instruction}\n{more}" if more else instruction
    return _single(prompt, text_at(row, "output"), "output")


def _convert_question(row: Row) -> Content:
    return _single(text_at(row, "question"), text_at(row, "answer"), "answer")


UNPAIRED = Format(
    name="unpaired",
    required=("prompt", "completion", "label"),
    convert=lambda row: _labelled(_convert_completion(row), label_at(row, "label")),
)
COMPLETIONS = Format(
    name="completions",
    required=("prompt", "completion"),
    convert=_convert_completion,
)
LABELLED_MESSAGES = Format(
    name="labelled_messages",
    required=("messages", "label"),
    convert=lambda row: _labelled(_convert_conversation(row), label_at(row, "label")),
)
MESSAGES = Format(
    name="messages",
    required=("messages",),
    convert=_convert_conversation,
)
LABELLED_SHAREGPT = Format(
    name="labelled_sharegpt",
    required=("conversations", "label"),
    optional=("system",),
    convert=lambda row: _labelled(_convert_sharegpt(row), label_at(row, "label")),
)
SHAREGPT = Format(
    name="sharegpt",
    required=("conversations",),
    optional=("system",),
    convert=_convert_sharegpt,
)
INSTRUCTIONS = Format(
    name="instructions",
    required=("instruction", "output"),
    optional=("input", "system", "history"),
    convert=_convert_instruction,
)
QUESTIONS = Format(name="questions", required=("question", "answer"), convert=_convert_question)
