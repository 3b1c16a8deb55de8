"""FastChat's model_judgment/<judge>_single.jsonl and <judge>_pair.jsonl (`llm_judge/common.py`)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.evaluation.formats.mt_bench import (
    prompt_of,
    prompts_by_question,
    question_id,
    write_lines,
)
from prefopt.evaluation.formats.rows import number_in, rows_of, text_in
from prefopt.evaluation.protocols.games import mean_score, winner_of
from prefopt.evaluation.types import Judgment, Prompt, Reply

EXTRA = "mt_bench"
"""Where an imported judgment keeps the fields that `Judgment` has no place for."""
NO_SCORE = -1
"""FastChat's score of a reply from which none could be read."""

_SINGLE = ("question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp")
_PAIR = (
    *("question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge", "g1_user_prompt"),
    *("g1_judgment", "g2_user_prompt", "g2_judgment", "turn", "tstamp"),
)
_TEMPLATE = "prefopt"
"""In place of the name of FastChat's judge prompt, which was not used."""
_WINNERS = {"model_1": (1.0, 0.0, 0.0), "model_2": (0.0, 1.0, 0.0), "tie": (0.0, 0.0, 1.0)}


def write_single(path: Path, prompts: Sequence[Prompt], judgments: Sequence[Judgment]) -> int:
    """Write scores, the mean of each judge's distribution; -1 where one is missing.

    Returns:
        How many lines.

    Raises:
        UserError: if there is no score.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    lines = []
    for judgment in judgments:
        if judgment.kind != "score" or judgment.prompt_id not in by_id:
            continue
        imported = judgment.extra.get(EXTRA, {})
        lines.append(
            {
                "question_id": question_id(by_id[judgment.prompt_id]),
                "model": judgment.system,
                "judge": imported.get("judge", [judgment.judge, _TEMPLATE]),
                "user_prompt": imported.get("user_prompt", ""),
                "judgment": judgment.reply.raw,
                "score": imported.get("score", _plain(mean_score(judgment))),
                "turn": judgment.turn,
                "tstamp": imported.get("tstamp", _seconds(judgment)),
            }
        )
    if not lines:
        raise UserError("no score of these prompts. Give a file with scores of MT-Bench.")
    write_lines(path, lines)
    return len(lines)


def read_single(path: Path, prompts: Sequence[Prompt]) -> list[Judgment]:
    """A score per line.

    Raises:
        UserError: naming the line that is none, or that is there twice.
    """
    by_question = prompts_by_question(prompts)
    found: dict[str, tuple[str, Judgment]] = {}
    for place, row in rows_of(path):
        _check_fields(row, _SINGLE, place)
        prompt = prompt_of(row, by_question, place)
        score = number_in(row, "score", place)
        is_ok = score != NO_SCORE
        reply = Reply(
            status="ok" if is_ok else "parse_error",
            probs=(1.0,) if is_ok else (),
            raw=text_in(row, "judgment", place),
            problem=None if is_ok else "FastChat read no score",
            num_attempts=0,
        )
        kept = {name: row[name] for name in ("judge", "user_prompt", "score", "tstamp")}
        judgment = Judgment(
            key=_key(_judge(row, place), row["question_id"], row["turn"], row["model"]),
            prompt_id=prompt.prompt_id,
            turn=_turn(row, prompt, place),
            sample=0,
            kind="score",
            system=text_in(row, "model", place),
            opponent=None,
            levels=(float(score),) if is_ok else (),
            judge=_judge(row, place),
            reply=reply,
            asked_at=_time(row),
            extra={EXTRA: kept},
        )
        _add(found, judgment, place)
    return [judgment for _, judgment in found.values()]


def write_pair(path: Path, prompts: Sequence[Prompt], judgments: Sequence[Judgment]) -> int:
    """Write pairs, a line for both orders; a winner is the likelier side, `error` where missing.

    Returns:
        How many lines.

    Raises:
        UserError: if there is no pair.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    games: dict[tuple[str, int, int, frozenset[str | None]], list[Judgment]] = {}
    for judgment in judgments:
        if judgment.kind == "pair" and judgment.prompt_id in by_id:
            sides = frozenset((judgment.system, judgment.opponent))
            key = (judgment.prompt_id, judgment.turn, judgment.sample, sides)
            games.setdefault(key, []).append(judgment)
    if not games:
        raise UserError("no judged pair of these prompts. Give a file with pairs of MT-Bench.")
    write_lines(path, [_pair_line(by_id[key[0]], played) for key, played in games.items()])
    return len(games)


def read_pair(path: Path, prompts: Sequence[Prompt]) -> list[Judgment]:
    """Two judgments per line, one per order.

    Raises:
        UserError: naming the line that is none, or that is there twice.
    """
    by_question = prompts_by_question(prompts)
    found: dict[str, tuple[str, Judgment]] = {}
    for place, row in rows_of(path):
        _check_fields(row, _PAIR, place)
        prompt = prompt_of(row, by_question, place)
        models = [text_in(row, f"model_{n}", place) for n in (1, 2)]
        for game, (first, second) in (("g1", models), ("g2", models[::-1])):
            kept = {name: row[name] for name in ("judge", f"{game}_user_prompt", "tstamp")}
            judgment = Judgment(
                key=_key(_judge(row, place), row["question_id"], row["turn"], first, second),
                prompt_id=prompt.prompt_id,
                turn=_turn(row, prompt, place),
                sample=0,
                kind="pair",
                system=first,
                opponent=second,
                levels=(),
                judge=_judge(row, place),
                reply=_pair_reply(row, game, place),
                asked_at=_time(row),
                extra={EXTRA: kept},
            )
            _add(found, judgment, place)
    return [judgment for _, judgment in found.values()]


def _pair_line(prompt: Prompt, played: Sequence[Judgment]) -> dict[str, Any]:
    first = played[0]
    names = {first.system: "model_1", first.opponent: "model_2"}
    swapped = next((each for each in played if each.system == first.opponent), None)
    imported = first.extra.get(EXTRA, {})
    imported_2 = swapped.extra.get(EXTRA, {}) if swapped else {}
    winners = [
        "error" if game is None else names.get(winner_of(game), winner_of(game))
        for game in (first, swapped)
    ]
    return {
        "question_id": question_id(prompt),
        "model_1": first.system,
        "model_2": first.opponent,
        "g1_winner": winners[0],
        "g2_winner": winners[1],
        "judge": imported.get("judge", [first.judge, _TEMPLATE]),
        "g1_user_prompt": imported.get("g1_user_prompt", ""),
        "g1_judgment": first.reply.raw,
        "g2_user_prompt": imported_2.get("g2_user_prompt", ""),
        "g2_judgment": swapped.reply.raw if swapped else "",
        "turn": first.turn,
        "tstamp": imported.get("tstamp", _seconds(first)),
    }


def _pair_reply(row: Mapping[str, Any], game: str, place: str) -> Reply:
    winner = text_in(row, f"{game}_winner", place)
    raw = text_in(row, f"{game}_judgment", place)
    if winner == "error":
        problem = "FastChat read no verdict"
        return Reply(status="parse_error", raw=raw, problem=problem, num_attempts=0)
    if winner not in _WINNERS:
        known = ", ".join([*_WINNERS, "error"])
        raise UserError(f"{place}: {game}_winner '{winner}' is none of {known}. Mend the line.")
    first, second, tie = _WINNERS[winner]
    probs = (first, second, tie) if game == "g1" else (second, first, tie)
    return Reply(status="ok", probs=probs, raw=raw, num_attempts=0)


def _add(found: dict[str, tuple[str, Judgment]], judgment: Judgment, place: str) -> None:
    if judgment.key in found:
        raise UserError(
            f"{place}: the same question as in {found[judgment.key][0]}. Remove one of the two."
        )
    found[judgment.key] = (place, judgment)


def _check_fields(row: Mapping[str, Any], fields: Sequence[str], place: str) -> None:
    missing = [name for name in fields if name not in row]
    if missing:
        raise UserError(f"{place}: no {missing[0]}. Give a line as FastChat writes it.")


def _judge(row: Mapping[str, Any], place: str) -> str:
    judge = row.get("judge")
    if not isinstance(judge, list) or not judge or not isinstance(judge[0], str):
        raise UserError(f"{place}: judge must be a list of judge and prompt. Mend the line.")
    return judge[0]


def _turn(row: Mapping[str, Any], prompt: Prompt, place: str) -> int:
    turn = int(number_in(row, "turn", place))
    if not 1 <= turn <= len(prompt.turns):
        raise UserError(f"{place}: turn {turn} of {len(prompt.turns)}. Mend the line.")
    return turn


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _plain(score: float | None) -> float | int:
    """As FastChat writes what it read: whole numbers without a point."""
    if score is None:
        return NO_SCORE
    return int(score) if score == int(score) else score


def _seconds(judgment: Judgment) -> float:
    return datetime.fromisoformat(judgment.asked_at).timestamp() if judgment.asked_at else 0.0


def _time(row: Mapping[str, Any]) -> str:
    stamp = row.get("tstamp")
    if not isinstance(stamp, int | float):
        return ""
    return datetime.fromtimestamp(stamp, UTC).isoformat(timespec="seconds")
