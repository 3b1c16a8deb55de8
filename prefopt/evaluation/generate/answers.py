"""The file of a system's answers: a header, then a line per answer."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.evaluation.files import read_lines
from prefopt.evaluation.types import Answer

SCHEMA = "prefopt/answers/1"


def read_answers(path: str | Path) -> tuple[dict[str, Any], list[Answer]]:
    """Header and answers of a file, in its order.

    Raises:
        UserError: if it is absent or something else, or a prompt is answered twice.
    """
    lines = numbered_lines(Path(path))
    header = next(lines)[1]
    return header, [answer_of(line, f"{path}:{number}") for number, line in lines]


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The header and every answer's line with its number, checked to be the only one of its sort.

    Raises:
        UserError: as `read_answers`, while it goes.
    """
    lines = read_lines(path)
    header = next(lines, None)
    if header is None or header.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: no file of answers, its first line has no schema {SCHEMA}. "
            "Give one that prefopt generate or prefopt formats import wrote."
        )
    if not isinstance(header.get("system"), str):
        raise UserError(f"{path}:1: the header names no system. Write the file again.")
    yield 1, header
    seen: dict[tuple[str, int], int] = {}
    for number, line in enumerate(lines, start=2):
        key = (str(line.get("prompt_id")), _sample(line, f"{path}:{number}"))
        if key in seen:
            raise UserError(
                f"{path}:{number}: sample {key[1]} of prompt {key[0]} is in line {seen[key]} too. "
                "Remove one of the two."
            )
        seen[key] = number
        yield number, line


def read_beside(path: str | Path) -> dict[tuple[str, int], dict[str, Any]]:
    """By prompt and sample, what an imported file said beside the answers.

    Raises:
        UserError: as `read_answers`.
    """
    lines = numbered_lines(Path(path))
    next(lines)
    return {
        (str(line["prompt_id"]), int(line.get("sample", 0))): line["extra"]
        for _, line in lines
        if "extra" in line
    }


def answer_of(line: Mapping[str, Any], place: str) -> Answer:
    """The answer in a line.

    Raises:
        UserError: naming the place, if a field is missing or of another type.
    """
    turns = line.get("turns")
    is_whole = (
        isinstance(line.get("prompt_id"), str)
        and isinstance(turns, list)
        and bool(turns)
        and all(isinstance(turn, str) for turn in turns)
    )
    if not is_whole:
        raise UserError(f"{place}: no answer: give prompt_id and turns, a list of texts.")
    assert turns is not None
    return Answer(
        prompt_id=line["prompt_id"],
        turns=tuple(turns),
        sample=_sample(line, place),
        num_tokens=tuple(line.get("num_tokens", ())),
        finish_reasons=tuple(line.get("finish_reasons", ())),
    )


def _sample(line: Mapping[str, Any], place: str) -> int:
    sample = line.get("sample", 0)
    if not isinstance(sample, int) or sample < 0:
        raise UserError(f"{place}: sample must be a whole number from 0, got {sample!r}.")
    return sample


def line_of(
    answer: Answer, seed: int | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The line of an answer; `extra` is what an imported file said beside it."""
    line: dict[str, Any] = {
        "prompt_id": answer.prompt_id,
        "sample": answer.sample,
        "turns": list(answer.turns),
        "num_tokens": list(answer.num_tokens),
        "finish_reasons": list(answer.finish_reasons),
        "seed": seed,
    }
    return line | ({"extra": dict(extra)} if extra else {})


def header_of(
    system: str,
    model: str,
    decode: Mapping[str, Any],
    *,
    chat_template: str | None = None,
    versions: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The first line of a file of answers.

    Args:
        system: its name in tables.
        model: path or id.
        decode: everything that an answer depends on beside the model and the prompt.
        chat_template: hash of the template that rendered the prompts; None for plain text.
        versions: of the packages that wrote the answers.
        more: further plain values.
    """
    return {
        "schema": SCHEMA,
        "system": system,
        "model": model,
        "decode": dict(decode),
        "chat_template": chat_template,
        "versions": dict(versions or {}),
        **more,
    }


def check_header(path: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a file that was begun in another way.

    Raises:
        UserError: naming every key that differs.
    """
    found = next(numbered_lines(path))[1]
    differing = list(_differences(found, wanted))
    if differing:
        raise UserError(
            f"{path} was begun with other settings: {'; '.join(differing)}. "
            "Go on with the old ones, write to another file, or remove this one."
        )


def check_same_prompts(path: str | Path, answers: Collection[Answer], known: set[str]) -> None:
    """Refuse answers to other prompts.

    Raises:
        UserError: with how many there are.
    """
    num_other = sum(answer.prompt_id not in known for answer in answers)
    if num_other:
        raise UserError(
            f"{path}: {num_other} of {len(answers)} answers are to other prompts. "
            "Give the prompts that the file was made from."
        )


def _differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], above: str = ""
) -> Iterator[str]:
    for key in dict.fromkeys([*wanted, *found]):
        there, here = found.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(there, here, f"{above}{key}.")
        elif there != here:
            yield f"{above}{key} was {there!r}, is {here!r}"
