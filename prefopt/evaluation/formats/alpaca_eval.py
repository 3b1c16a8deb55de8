"""AlpacaEval's model_outputs.json and annotations.json (alpaca-eval 0.6.6).

`output_1` is the reference's, `output_2` the system's; `preference` lies in [1, 2]: 1 where the
reference is better, 2 where the system is, 1.5 for a tie, null where no judgment came.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt import __version__
from prefopt.errors import UserError
from prefopt.evaluation.files import write_whole
from prefopt.evaluation.formats.rows import number_in, rows_of, text_in
from prefopt.evaluation.generate.base import Key, short
from prefopt.evaluation.protocols.games import Games, games_against, win_of
from prefopt.evaluation.suites import read_suite
from prefopt.evaluation.types import Answer, Judgment, Prompt, Reply

EXTRA = "alpaca_eval"
"""Where a judgment keeps what a row said beside, and in which order."""

_OPTIONAL = ("dataset", "output_1", "output_2")
_FIELDS = (*_OPTIONAL, "instruction", "generator_1", "generator_2", "annotator", "preference")


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """What a file of annotations holds."""

    prompts: tuple[Prompt, ...]
    answers: dict[str, list[Answer]]
    """By system; empty for slim files, which leave the outputs out."""
    judgments: tuple[Judgment, ...]


def write_model_outputs(
    path: Path, prompts: Sequence[Prompt], answers: Sequence[Answer], system: str
) -> None:
    """Write the first sample of each prompt as model_outputs.json.

    Raises:
        UserError: if a prompt has more than one turn, or no answer.
    """
    by_key = {(answer.prompt_id, answer.sample): answer for answer in answers}
    rows = []
    for prompt in prompts:
        answer = by_key.get((prompt.prompt_id, 0))
        if answer is None:
            raise UserError(
                f"{system} has no answer to {short(prompt)}. Let prefopt generate go on first."
            )
        row = {"instruction": instruction_of(prompt), "output": answer.turns[0]}
        row["generator"] = system
        if prompt.dataset is not None:
            row["dataset"] = prompt.dataset
        rows.append(row)
    _write(path, rows)


def read_model_outputs(path: Path) -> tuple[str, list[Prompt], list[Answer]]:
    """System, prompts and its answers of a model_outputs.json.

    Raises:
        UserError: if it is another file, or a prompt is there twice.
    """
    suite = read_suite(path)
    if suite.baseline is None:
        raise UserError(f"{path}: no model_outputs.json, whose rows have instruction and output.")
    return suite.baseline, list(suite.prompts), list(suite.baseline_answers)


def write_annotations(
    path: Path,
    prompts: Sequence[Prompt],
    judgments: Sequence[Judgment],
    baseline: str,
    answers: Mapping[str, Sequence[Answer]] | None = None,
) -> int:
    """Write judgments against a baseline as annotations.json, a row per prompt and sample.

    Args:
        path: the file.
        prompts: in the order that the rows should have.
        judgments: pairs, in one or both orders, which are averaged.
        baseline: whose answers are `output_1`; pairs without it are left out.
        answers: by system, for the outputs; without them the rows have none.

    Returns:
        How many rows.

    Raises:
        UserError: if no pair has the baseline, or a prompt has more than one turn.
    """
    texts = {
        (system, answer.prompt_id, answer.sample): answer.turns[0]
        for system, given in (answers or {}).items()
        for answer in given
    }
    by_prompt: dict[str, list[tuple[str, Key, Games]]] = {}
    for system, games in games_against(judgments, baseline).items():
        for key, played in games.items():
            by_prompt.setdefault(key[0], []).append((system, key, played))
    rows = [
        _row(prompt, baseline, system, key, played, texts)
        for prompt in prompts
        for system, key, played in by_prompt.get(prompt.prompt_id, [])
    ]
    if not rows:
        raise UserError(f"no judgment of these prompts is against {baseline}. Name the baseline.")
    _write(path, rows)
    return len(rows)


def read_annotations(path: Path) -> Annotations:
    """Prompts, answers where there are any, and a judgment per row.

    Raises:
        UserError: naming the row that has no instruction, generators or right preference, or that
            is there twice.
    """
    prompts: dict[str, Prompt] = {}
    answers: dict[str, dict[str, Answer]] = {}
    judgments: dict[str, tuple[str, Judgment]] = {}
    for place, row in rows_of(path):
        prompt = Prompt(
            turns=(text_in(row, "instruction", place),),
            dataset=None if row.get("dataset") is None else text_in(row, "dataset", place),
        )
        prompts.setdefault(prompt.prompt_id, prompt)
        for side in ("1", "2"):
            system = text_in(row, f"generator_{side}", place)
            if row.get(f"output_{side}") is not None:
                text = text_in(row, f"output_{side}", place)
                answer = Answer(prompt_id=prompt.prompt_id, turns=(text,))
                answers.setdefault(system, {}).setdefault(prompt.prompt_id, answer)
        judgment = _judgment(row, prompt, place)
        if judgment.key in judgments:
            raise UserError(
                f"{place}: the same two systems and prompt as in {judgments[judgment.key][0]}. "
                "Remove one of the two."
            )
        judgments[judgment.key] = (place, judgment)
    return Annotations(
        prompts=tuple(prompts.values()),
        answers={system: list(given.values()) for system, given in answers.items()},
        judgments=tuple(judgment for _, judgment in judgments.values()),
    )


def instruction_of(prompt: Prompt) -> str:
    """The prompt as AlpacaEval knows it.

    Raises:
        UserError: if it is more than one text.
    """
    if len(prompt.turns) > 1 or prompt.context:
        raise UserError(
            f"{short(prompt)} is a dialogue, and AlpacaEval's files hold one instruction. "
            "Leave it out, or export to MT-Bench's format."
        )
    return prompt.turns[0]


def _judgment(row: dict[str, Any], prompt: Prompt, place: str) -> Judgment:
    first, second = (text_in(row, f"generator_{side}", place) for side in ("1", "2"))
    annotator = text_in(row, "annotator", place)
    text = json.dumps([annotator, prompt.prompt_id, first, second])
    # What the judgment, the prompt and the answers do not give back exactly, such as whole numbers.
    beside = {
        name: value
        for name, value in row.items()
        if name not in _FIELDS
        or value is None
        or (name == "preference" and not isinstance(value, float))
    }
    return Judgment(
        key=hashlib.sha256(text.encode()).hexdigest()[:24],
        prompt_id=prompt.prompt_id,
        turn=1,
        sample=0,
        kind="pair",
        system=first,
        opponent=second,
        levels=(),
        judge=annotator,
        reply=_reply(row, place),
        asked_at=str(row.get("preference_date") or ""),
        extra={EXTRA: {"columns": list(row), "values": beside}},
    )


def _reply(row: dict[str, Any], place: str) -> Reply:
    if row.get("preference") is None:
        return Reply(status="parse_error", problem="AlpacaEval read no preference", num_attempts=0)
    preference = number_in(row, "preference", place)
    # Older files write 0 for a tie.
    if preference in (0, 1.5):
        return Reply(status="ok", probs=(0.0, 0.0, 1.0), num_attempts=0)
    if not 1 <= preference <= 2:
        raise UserError(f"{place}: preference {preference} is not in [1, 2]. Mend the row.")
    return Reply(status="ok", probs=(2.0 - preference, preference - 1.0, 0.0), num_attempts=0)


def _row(
    prompt: Prompt,
    baseline: str,
    system: str,
    key: Key,
    games: Games,
    texts: Mapping[tuple[str, str, int], str],
) -> dict[str, Any]:
    """A row with the official fields, or those that the imported row had."""
    win = win_of(games, system)
    first = games[0]
    row: dict[str, Any] = {
        "instruction": instruction_of(prompt),
        "dataset": prompt.dataset,
        "output_1": texts.get((baseline, *key)),
        "generator_1": baseline,
        "output_2": texts.get((system, *key)),
        "generator_2": system,
        "annotator": first.judge,
        "preference": None if win is None else 1 + win,
    }
    row = {name: value for name, value in row.items() if name not in _OPTIONAL or value is not None}
    imported = first.extra.get(EXTRA)
    if imported is not None:
        row |= imported["values"]
        return {name: row[name] for name in imported["columns"] if name in row}
    return row | {
        "preference_price_per_example": None,
        "preference_time_per_example": None,
        "preference_date": first.asked_at,
        "preference_version": f"prefopt {__version__}",
        "preference_raw_completion": [game.reply.raw for game in games],
    }


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As AlpacaEval's repository keeps such files: one line, UTF-8, no line end."""
    write_whole(path, json.dumps(rows, ensure_ascii=False, allow_nan=False))
