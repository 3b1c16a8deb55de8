"""Reference answers to questions of MT-Bench, which judges of maths and code are shown."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefopt.errors import UserError
from prefopt.evaluation.files import read_lines
from prefopt.evaluation.types import Prompt

FOLDER = "reference_answer"
NEED_REFERENCE = ("math", "reasoning", "coding")
"""Categories in which FastChat's judges compare with a reference (`common.py`, NEED_REF_CATS)."""


def find_references(
    questions: Path, given: str | os.PathLike[str] | None
) -> tuple[Path | None, list[str]]:
    """The file of reference answers: the given one, else the only one that lies beside.

    Returns:
        The file, None if there is none, and a note if there are several and none is used.
    """
    if given is not None:
        return Path(given), []
    beside = sorted((questions.parent / FOLDER).glob("*.jsonl")) if questions.is_file() else []
    if len(beside) > 1:
        names = ", ".join(each.name for each in beside)
        note = (
            f"{questions.parent / FOLDER} holds several files, {names}: none is used unless named."
        )
        return None, [note]
    return (beside[0] if beside else None), []


def add_references(prompts: Sequence[Prompt], path: Path | None) -> tuple[list[Prompt], list[str]]:
    """Prompts with the reference answers to them, and notes on which are used or lacking.

    Raises:
        UserError: if the file is broken, answers a question twice or none of these questions.
    """
    answers = {} if path is None else _reference_answers(path)
    found = [
        replace(prompt, reference=answers[prompt.source_id])
        if prompt.source_id in answers
        else prompt
        for prompt in prompts
    ]
    num = sum(prompt.reference is not None for prompt in found)
    notes = []
    if path is not None:
        if not num:
            raise UserError(f"{path}: answers none of the questions. Give the file for them.")
        notes.append(f"Reference answers of {path.stem} to {num} questions.")
    without = [
        prompt.source_id
        for prompt in found
        if prompt.category in NEED_REFERENCE and prompt.reference is None
    ]
    if without:
        notes.append(
            f"No reference answer to {len(without)} questions of {', '.join(NEED_REFERENCE)}."
        )
    return found, notes


def _reference_answers(path: Path) -> dict[str, tuple[str, ...]]:
    answers: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            name, turns = str(line["question_id"]), line["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{path}:{number}: no reference answer: give question_id and choices[0].turns."
            ) from None
        if name in answers:
            raise UserError(f"{path}:{number}: a second answer to question {name}. Remove one.")
        answers[name] = tuple(str(turn) for turn in turns)
    return answers
