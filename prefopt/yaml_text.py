"""YAML as users write it: files, and `key.sub=value` on the command line; mistakes in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import UserError


def read_mapping(path: Path, *, what: str, keys: str) -> dict[str, Any]:
    """The keys and values of a YAML file, none of which stands twice.

    Args:
        path: the file.
        what: what it should hold, such as: recipe.
        keys: what such a thing is a mapping with, for the message.

    Raises:
        UserError: if it cannot be read, with the line and column of a mistake.
    """
    try:
        values = parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}. Give the path of a YAML file.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder. Give the path of a YAML file.") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Give a YAML file that can be read.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}. Save it as UTF-8.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a {what} is a mapping with {keys}.")
    for key in values:
        if not isinstance(key, str):
            raise UserError(f"{path}: {key!r} is no key of a {what}, as it is no text. Remove it.")
    return values


def parse(text: str, name: str) -> Any:
    """What YAML says.

    Args:
        text: the YAML.
        name: how messages call it.

    Raises:
        UserError: if it is none, or a key stands twice in one mapping.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UserError(f"{place}: not YAML: {error.problem}. Mend the line.") from None
    except yaml.YAMLError as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{name}: not YAML: {line}. Remove what is not text.") from None


def put_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put `key.sub=value` words into nested values; numbers in a key count places of a list.

    Raises:
        UserError: for the first word that is no override, or whose path leads nowhere.
    """
    for override in overrides:
        _put(values, override)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key which stands twice in one mapping: only one could take effect."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if its keys differ."""
        seen = set[str]()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"'{key.value}' stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _put(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is no override. Write key.sub=value.")
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        place = (
            place[_index(place, parent, key)] if isinstance(place, list) else _child(place, parent)
        )
        if not isinstance(place, dict | list):
            raise UserError(f"{key}: '{parent}' has no keys below it. Check the path.")
    value = parse(text, override)
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    else:
        place[last] = value


def _child(place: dict[str, Any], name: str) -> Any:
    if place.get(name) is None:
        place[name] = {}
    return place[name]


def _index(place: list[Any], text: str, key: str) -> int:
    if not text.isdigit() or int(text) >= len(place):
        raise UserError(f"{key}: '{text}' is no index of a list of {len(place)}.")
    return int(text)
