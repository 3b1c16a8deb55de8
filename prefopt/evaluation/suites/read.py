"""Prompts of a file, a folder or a data set of the hub, in the format that their rows have."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.data.formats import Row
from prefopt.data.formats.base import RowError
from prefopt.data.section import SourceSection
from prefopt.data.sources import open_source
from prefopt.errors import UserError
from prefopt.evaluation.suites.references import add_references, find_references
from prefopt.evaluation.suites.rows import FORMATS, PromptFormat, baseline_answer
from prefopt.evaluation.types import Answer, Prompt

_NUM_QUESTIONS = 80
"""Of MT-Bench."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A set of prompts, and what came with it."""

    format: str
    """mt_bench, alpaca_eval, prompts, or preferences."""
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()
    """What a reader of the numbers has to know, a sentence each."""
    baseline: str | None = None
    """Name of the system whose outputs stand beside the prompts, in files of AlpacaEval."""
    baseline_answers: tuple[Answer, ...] = ()
    """Its outputs, one per prompt."""


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """The prompts alone; see `read_suite`."""
    return list(read_suite(path).prompts)


def read_suite(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    references: str | os.PathLike[str] | None = None,
) -> Suite:
    """Prompts, and the baseline's outputs where the file has them.

    Args:
        path: a file, a folder, or the id of a data set on the hub.
        split: of a folder or data set; `train` by default.
        references: file of reference answers to questions of MT-Bench, as FastChat keeps them; by
            default the one file in `reference_answer` beside the questions.

    Raises:
        UserError: for what cannot be read, naming the line: an unknown format, an empty prompt, one
            that is there twice.
    """
    rows = _rows(os.fspath(path), split)
    place, first = rows[0]
    format = next((each for each in FORMATS if each.accepts(first)), None)
    if format is None:
        raise UserError(
            f"{place}: no prompt, found the columns {', '.join(first) or 'none'}. "
            'Give rows like {"prompt": TEXT}, {"turns": [TEXT, TEXT]} or {"messages": [...]}, '
            "or a file of MT-Bench or AlpacaEval."
        )
    prompts, notes = _prompts(rows, format)
    if format.name == "mt_bench":
        file, ambiguity = find_references(Path(path), references)
        prompts, more = add_references(prompts, file)
        notes += _note_on_number(prompts) + ambiguity + more
    elif references is not None:
        raise UserError(f"{path}: reference answers go with questions of MT-Bench only.")
    baseline, answers = _baseline(rows, prompts) if format.name == "alpaca_eval" else (None, ())
    return Suite(
        format=format.name,
        prompts=tuple(prompts),
        notes=tuple(notes),
        baseline=baseline,
        baseline_answers=answers,
    )


def _rows(path: str, split: str | None) -> list[tuple[str, Row]]:
    """Every row with its place."""
    file = Path(path)
    if file.is_file() and file.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. Give a file with prompts.")
    parts = open_source(SourceSection(path=path, split=split), "prompts")
    rows = [(f"{part.place}:{number}", row) for part in parts for number, row in part.rows()]
    if not rows:
        raise UserError(f"{path}: holds no prompts. Give a file with at least one.")
    return rows


def _prompts(
    rows: Sequence[tuple[str, Row]], format: PromptFormat
) -> tuple[list[Prompt], list[str]]:
    """The prompts in their order, each once."""
    first_places: dict[str, str] = {}
    named: dict[str, str] = {}
    prompts = []
    for place, prompt in _converted(rows, format):
        before = first_places.setdefault(prompt.prompt_id, place)
        if before is not place:
            if format.may_repeat:
                continue
            raise UserError(f"{place}: the same prompt as in {before}. Remove one of the two.")
        name = prompt.source_id
        if name is not None and named.setdefault(name, place) is not place:
            raise UserError(
                f"{place}: the id {name} is that of {named[name]} too. Give every prompt its own."
            )
        prompts.append(prompt)
    num_again = len(rows) - len(prompts)
    notes = [f"{num_again:,} rows repeat a prompt and are left out."] if num_again else []
    return prompts, notes


def _converted(
    rows: Sequence[tuple[str, Row]], format: PromptFormat
) -> Iterator[tuple[str, Prompt]]:
    for place, row in rows:
        if not format.accepts(row):
            raise UserError(
                f"{place}: the file began as {format.name}, but this row has the columns "
                f"{', '.join(row) or 'none'}. Give every row a prompt in the same format."
            )
        try:
            prompt = format.convert(row)
        except RowError as error:
            raise UserError(f"{place}:{error}") from error
        if not all(turn.strip() for turn in prompt.turns):
            raise UserError(f"{place}: an empty prompt. Fill it in or remove the row.")
        yield place, prompt


def _baseline(
    rows: Sequence[tuple[str, Row]], prompts: Sequence[Prompt]
) -> tuple[str | None, tuple[Answer, ...]]:
    """The system whose outputs stand beside the prompts, if every row has one."""
    with_output = [row for _, row in rows if row.get("output") is not None]
    if not with_output:
        return None, ()
    place = rows[0][0].rpartition(":")[0]
    if len(with_output) != len(rows):
        raise UserError(
            f"{place}: {len(rows) - len(with_output)} of {len(rows)} rows have no output. "
            "Give all or none of them one."
        )
    names = Counter(str(row.get("generator", "baseline")) for row in with_output)
    if len(names) > 1:
        raise UserError(
            f"{place}: outputs of several systems: {', '.join(sorted(names))}. Give a file each."
        )
    answers = tuple(
        baseline_answer(row, prompt, place)
        for (place, row), prompt in zip(rows, prompts, strict=True)
    )
    return next(iter(names)), answers


def _note_on_number(prompts: Sequence[Prompt]) -> list[str]:
    if len(prompts) == _NUM_QUESTIONS:
        return []
    return [f"{len(prompts)} questions, where MT-Bench has {_NUM_QUESTIONS}."]
