"""FastChat's model_answer/<model>.jsonl (`llm_judge/gen_model_answer.py`)."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.evaluation.files import write_whole
from prefopt.evaluation.formats.rows import rows_of, text_in
from prefopt.evaluation.generate.base import Key, short
from prefopt.evaluation.types import Answer, Prompt

_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
"""Of shortuuid: no letters and digits that look alike."""
_LENGTH_OF_ID = 22

Beside = Mapping[Key, Mapping[str, Any]]
"""What a file says of an answer that `Answer` has no place for: answer_id and tstamp."""


def write_model_answers(
    path: Path,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    model_id: str,
    *,
    tstamp: float,
    beside: Beside | None = None,
) -> None:
    """Write all samples of each question as choices, questions in the order of the prompts.

    Args:
        path: the file.
        prompts: questions of MT-Bench.
        answers: of one system.
        model_id: its name.
        tstamp: seconds since 1970, for answers of which nothing is known beside.
        beside: what an imported file said.

    Raises:
        UserError: if a prompt is no question of MT-Bench, or has no answer.
    """
    by_prompt: dict[str, list[Answer]] = {}
    for answer in sorted(answers, key=lambda each: each.sample):
        by_prompt.setdefault(answer.prompt_id, []).append(answer)
    lines = []
    for prompt in prompts:
        given = by_prompt.get(prompt.prompt_id)
        if not given:
            raise UserError(
                f"{model_id} has no answer to {short(prompt)}. Let prefopt generate go on first."
            )
        turns = [list(answer.turns) for answer in given]
        known = (beside or {}).get((prompt.prompt_id, given[0].sample), {})
        lines.append(
            {
                "question_id": question_id(prompt),
                "answer_id": known.get("answer_id", _answer_id(model_id, prompt, turns)),
                "model_id": model_id,
                "choices": [
                    {"index": answer.sample, "turns": list(answer.turns)} for answer in given
                ],
                "tstamp": known.get("tstamp", tstamp),
            }
        )
    write_lines(path, lines)


def read_model_answers(
    path: Path, prompts: Sequence[Prompt]
) -> tuple[str, list[Answer], dict[Key, dict[str, Any]]]:
    """Model, its answers, and what the file says beside.

    Raises:
        UserError: naming the line that is no answer, answers another question, or a question twice,
            or is of another model.
    """
    by_question = prompts_by_question(prompts)
    model_id = ""
    answers: list[Answer] = []
    beside: dict[Key, dict[str, Any]] = {}
    for place, row in rows_of(path):
        prompt = prompt_of(row, by_question, place)
        name = text_in(row, "model_id", place)
        if model_id and name != model_id:
            raise UserError(f"{place}: of {name}, the lines before are of {model_id}. Part them.")
        model_id = name
        for answer in _choices(row, prompt, place):
            key = (answer.prompt_id, answer.sample)
            if key in beside:
                raise UserError(
                    f"{place}: a second answer to question {prompt.source_id}. Remove one."
                )
            answers.append(answer)
            beside[key] = {name: row[name] for name in ("answer_id", "tstamp") if name in row}
    return model_id, answers, beside


def question_id(prompt: Prompt) -> int | str:
    """A number where it is one, as in MT-Bench.

    Raises:
        UserError: if the prompt has no id.
    """
    name = prompt.source_id
    if name is None:
        raise UserError(
            f"{short(prompt)} has no question_id, by which FastChat's files go. Give it an id."
        )
    return int(name) if name.isdecimal() else name


def prompts_by_question(prompts: Iterable[Prompt]) -> dict[str, Prompt]:
    """The prompts by their question_id."""
    return {str(question_id(prompt)): prompt for prompt in prompts}


def prompt_of(row: Mapping[str, Any], by_question: Mapping[str, Prompt], place: str) -> Prompt:
    """The question that a line is about.

    Raises:
        UserError: if it is none of the prompts.
    """
    name = str(row.get("question_id"))
    if name not in by_question:
        raise UserError(
            f"{place}: question_id {name} is none of the prompts. Give the questions it is about."
        )
    return by_question[name]


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines in the layout of FastChat: other than ASCII is escaped."""
    write_whole(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def _choices(row: Mapping[str, Any], prompt: Prompt, place: str) -> list[Answer]:
    choices = row.get("choices")
    try:
        found = [
            Answer(
                prompt_id=prompt.prompt_id,
                turns=tuple(str(turn) for turn in choice["turns"]),
                sample=int(choice["index"]),
            )
            for choice in choices or []
        ]
    except (KeyError, TypeError, ValueError):
        found = []
    if not found:
        raise UserError(f"{place}: choices must be a list of index and turns. Mend the line.")
    for answer in found:
        if len(answer.turns) != len(prompt.turns):
            raise UserError(
                f"{place}: {len(answer.turns)} turns, where question {prompt.source_id} has "
                f"{len(prompt.turns)}. Answer all of them."
            )
    return found


def _answer_id(model_id: str, prompt: Prompt, turns: Sequence[Sequence[str]]) -> str:
    """A shortuuid, made of the content, so that the same answers have the same one."""
    text = json.dumps([model_id, prompt.prompt_id, turns])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
    digits = []
    for _ in range(_LENGTH_OF_ID):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
