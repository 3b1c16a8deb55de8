"""Files of judgments: a header that says who judged, then one line per judgment."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.evaluation.files import Lines, read_lines
from prefopt.evaluation.judge.base import Judge
from prefopt.evaluation.types import Judgment, Reply

SCHEMA = "prefopt/judgments/1"
_REPLY = [field.name for field in fields(Reply)]
_JUDGMENT = [field.name for field in fields(Judgment) if field.name != "reply"]
_TUPLES = ("levels", "probs")


def header_of(judge: Judge) -> dict[str, Any]:
    """The first line of a judge's file."""
    return {"schema": SCHEMA, "judge": {"name": judge.name, "identity": judge.identity}}


def to_line(judgment: Judgment) -> dict[str, Any]:
    """A judgment as plain values, with the reply's fields beside its own."""
    line = {name: getattr(judgment, name) for name in _JUDGMENT}
    return line | {name: getattr(judgment.reply, name) for name in _REPLY}


def from_line(line: Mapping[str, Any]) -> Judgment:
    """The judgment in a line.

    Raises:
        TypeError: if a field is missing that has no default.
    """
    values: dict[str, Any] = {
        key: tuple(value) if key in _TUPLES else value for key, value in line.items()
    }
    reply = Reply(**{name: values[name] for name in _REPLY if name in values})
    return Judgment(**{name: values[name] for name in _JUDGMENT if name in values}, reply=reply)


def read_judgments(path: Path) -> tuple[dict[str, Any], list[Judgment]]:
    """Header and judgments of a file; of lines about the same judgment the last one counts.

    Raises:
        UserError: if the file is absent or holds something else.
    """
    lines = read_lines(path)
    header = next(lines, None)
    if header is None or header.get("schema") != SCHEMA or "judge" not in header:
        raise UserError(f"{path}: not a file of judgments, its first line is no {SCHEMA} header.")
    found: dict[tuple[Any, ...], Judgment] = {}
    for number, line in enumerate(lines, start=2):
        try:
            judgment = from_line(line)
        except TypeError as error:
            what = str(error).rpartition(") ")[2]
            raise UserError(f"{path}:{number}: not a judgment: {what}. Remove the line.") from None
        found[place_of(judgment)] = judgment
    return header, list(found.values())


def place_of(judgment: Judgment) -> tuple[Any, ...]:
    """What a judgment is about: key, and whose answers they were.

    Two systems may give the same answer to a prompt. Then a judge is asked once, and there is a
    line for each.
    """
    return (
        judgment.key,
        judgment.prompt_id,
        judgment.kind,
        judgment.turn,
        judgment.sample,
        judgment.system,
        judgment.opponent,
    )


class JudgmentWriter:
    """Appends to a judge's file, after a check that it is this judge's.

    Raises:
        UserError: if the file holds another judge's judgments.
    """

    def __init__(self, judge: Judge, path: Path) -> None:
        self.known: list[Judgment] = []
        wanted = json.loads(json.dumps(header_of(judge)))
        is_new = _is_empty(path, json.dumps(wanted, ensure_ascii=False))
        if not is_new:
            header, self.known = read_judgments(path)
            _check_same_judge(header["judge"], wanted["judge"], path)
        self._lines = Lines(path)
        if is_new:
            self._lines.append(wanted)

    def append(self, judgment: Judgment) -> None:
        """Write one judgment."""
        self._lines.append(to_line(judgment))

    def close(self) -> None:
        """Wait for the disk."""
        self._lines.close()


def _is_empty(path: Path, header: str) -> bool:
    """Whether nothing is there, or only what a killed process left of its header."""
    if not path.exists():
        return True
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    return not first.endswith("\n") and header.startswith(first)


def _check_same_judge(there: Mapping[str, Any], ours: Mapping[str, Any], path: Path) -> None:
    """The name may change, what can change a reply may not."""
    old, new = there.get("identity", {}), ours["identity"]
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        key = differing[0]
        raise UserError(
            f"{path} holds judgments of another judge ({there.get('name')}): its {key} is "
            f"{old.get(key)!r}, this one's {new.get(key)!r}. Choose another output."
        )
