"""Hashes that tell texts, prompts and records apart."""

import json

import xxhash

from prefopt.types import Message, PreferenceRecord


def number(text: str) -> int:
    """64-bit hash of a text."""
    return xxhash.xxh3_64_intdigest(text.encode())


def digest(text: str) -> str:
    """128-bit hash of a text in hexadecimal: the name of a folder in the cache."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def prompt_hash(prompt: str | list[Message]) -> int:
    """64-bit hash of a prompt, blind to case, white space and the text-or-message form."""
    return number(" ".join(_said(prompt).split()).casefold())


def content_hash(record: PreferenceRecord) -> int:
    """64-bit hash of prompt and responses exactly, in whatever order the responses come."""
    responses = sorted(_exact(response) for response in record.responses)
    whole = [_exact(record.prompt), record.tools, *responses]
    return number(json.dumps(whole, sort_keys=True, default=str))


def _exact(value: str | list[Message]) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _said(prompt: str | list[Message]) -> str:
    """The prompt as one text; a single user message reads like a text prompt."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return _content(prompt[0])
    return "\n".join(f"{message['role']}: {_content(message)}" for message in prompt)


def _content(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content)
