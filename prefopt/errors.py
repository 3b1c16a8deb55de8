"""The one error that a user can cause, and the words that help them out of it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Section = TypeVar("Section", bound=BaseModel)


class UserError(ValueError):
    """A mistake in a recipe, in data or in a folder: one line with what, where and the way out.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'beta'? Known: beta, tau.`, without the question if nothing known is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    question = f"Did you mean '{near[0]}'? " if near else ""
    return f"{question}Known: {', '.join(names)}." if names else "There are none."


def check_section(cls: type[Section], values: Mapping[str, Any], where: str) -> Section:
    """The validated section of a recipe.

    Args:
        cls: the section's model.
        values: what the recipe says.
        where: the section's key, for messages; "" for the recipe itself.

    Raises:
        UserError: for the first key that is unknown, missing or has a value of the wrong type or
            range, with the key's full path.
    """
    try:
        return cls.model_validate(values, context={"where": where})
    except ValidationError as error:
        first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        raise cause
    path = [str(part) for part in first["loc"]]
    key = ".".join([where, *path]) if where else ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, first["loc"][:-1])
        raise UserError(f"{key}: unknown key. {did_you_mean(path[-1], known)}")
    if first["type"] == "missing":
        field = _fields_at(cls, first["loc"][:-1]).get(path[-1])
        raise UserError(f"{key} is missing: the recipe must say it.{_meaning(field)}")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    raise UserError(f"{key} {message}, got {first['input']!r}.")


def _fields_at(cls: type[BaseModel], path: Iterable[int | str]) -> Mapping[str, FieldInfo]:
    """Fields of the model that lies at a path inside another one; none where it is no model."""
    for part in path:
        if isinstance(part, int) or part not in cls.model_fields:
            continue
        annotation = cls.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return {}
        cls = found[0]
    return cls.model_fields


def _meaning(field: FieldInfo | None) -> str:
    """The first sentence of a key's documentation, behind a space; empty if there is none."""
    text = field.description if field is not None else None
    words = " ".join((text or "").split())
    sentence = words.split(". ")[0].rstrip(".")
    return f" It is: {sentence}." if sentence else ""
