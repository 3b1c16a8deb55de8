"""`prefopt formats table`: the tables of AlpacaEval and MT-Bench, with judge and intervals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.generate.answers import check_same_prompts, read_answers
from prefopt.evaluation.judge.judgments import read_judgments
from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.protocols.alpaca_eval import alpaca_eval_rows
from prefopt.evaluation.protocols.mt_bench import mt_bench_pairs, mt_bench_scores
from prefopt.evaluation.statistics.official_length_control import read_gamed
from prefopt.evaluation.suites import read_suite
from prefopt.evaluation.types import Answer, Judgment, Prompt

PROTOCOLS = ("alpaca", "mt-bench")


def run(
    protocol: str,
    *,
    prompts: str,
    judgments: Path,
    baseline: str | None,
    answers: Sequence[Path],
    official_lc: Path | None,
    as_json: bool,
) -> None:
    """Print the tables; see `prefopt formats table --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol '{protocol}'. {did_you_mean(protocol, PROTOCOLS)}")
    if protocol == "alpaca" and baseline is None:
        raise UserError("AlpacaEval compares with one system. Name it: --baseline NAME.")
    if protocol == "mt-bench" and (answers or official_lc):
        option = "--answers" if answers else "--official-lc"
        raise UserError(f"{option} has no effect on mt-bench. Remove it.")
    suite = read_suite(prompts)
    asked = suite.prompts
    found = read_judgments(judgments)[1]
    check_judged(judgments, found, asked)
    if protocol == "alpaca":
        assert baseline is not None
        of_systems: dict[str, Sequence[Answer]] = dict(_answers(answers, asked))
        if suite.baseline is not None:
            of_systems.setdefault(suite.baseline, suite.baseline_answers)
        tables = _alpaca(asked, found, baseline, of_systems, official_lc)
    else:
        tables = _mt_bench(asked, found, baseline)
    if as_json:
        plain = {name: [asdict(row) for row in rows] for name, (rows, _) in tables.items()}
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    for rows, lines in tables.values():
        typer.echo(rows[0].title)
        for line in aligned(lines):
            typer.echo(f"  {line}")


def check_judged(path: Path, judgments: Sequence[Judgment], prompts: Sequence[Prompt]) -> None:
    """Refuse judgments of other prompts.

    Raises:
        UserError: with how many there are.
    """
    known = {prompt.prompt_id for prompt in prompts}
    num_other = sum(judgment.prompt_id not in known for judgment in judgments)
    if num_other:
        raise UserError(
            f"{path}: {num_other} of {len(judgments)} judgments are of other prompts. "
            "Give the prompts that were judged."
        )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns: the first to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _answers(paths: Sequence[Path], prompts: Sequence[Prompt]) -> dict[str, list[Answer]]:
    known = {prompt.prompt_id for prompt in prompts}
    found = {}
    for path in paths:
        header, answers = read_answers(path)
        check_same_prompts(path, answers, known)
        found[header["system"]] = answers
    return found


def _alpaca(
    prompts: Sequence[Prompt],
    judgments: Sequence[Judgment],
    baseline: str,
    answers: Mapping[str, Sequence[Answer]],
    official_lc: Path | None,
) -> dict[str, tuple[Sequence[Any], list[list[str]]]]:
    gamed = None if official_lc is None else read_gamed(official_lc)
    rows = alpaca_eval_rows(prompts, judgments, baseline, answers, gamed)
    head = [f"against {baseline}", "win rate", "95 %", "SE", "discrete"]
    lines = [[*head, "wins", "draws", "losses", "length", "prompts", "missing"]]
    for row in rows:
        lines.append(
            [
                row.system,
                f"{row.win_rate:.2f}",
                _interval(row.win, 100),
                "-" if row.standard_error is None else f"{row.standard_error:.2f}",
                f"{row.discrete_win_rate:.2f}",
                *map(str, (row.n_wins, row.n_draws, row.n_wins_base)),
                "-" if row.avg_length is None else str(row.avg_length),
                *map(str, (row.n_total, row.num_missing)),
            ]
        )
    if official_lc is not None:
        lines[0] += ["official LC", "95 %"]
        for line, row in zip(lines[1:], rows, strict=True):
            assert row.official_lc is not None
            line += [f"{100 * row.official_lc['value']:.2f}", _interval(row.official_lc, 100)]
    return {"alpaca": (rows, lines)}


def _mt_bench(
    prompts: Sequence[Prompt], judgments: Sequence[Judgment], baseline: str | None
) -> dict[str, tuple[Sequence[Any], list[list[str]]]]:
    """Scores where there are any, and wins against a baseline if one is named."""
    tables: dict[str, tuple[Sequence[Any], list[list[str]]]] = {}
    has_scores = any(judgment.kind == "score" for judgment in judgments)
    if not has_scores and baseline is None:
        raise UserError("there are pairs only, no scores. Name a baseline: --baseline NAME.")
    if has_scores:
        rows = mt_bench_scores(prompts, judgments)
        cells = [(row.system, row.overall, row.by_turn, row.by_category) for row in rows]
        missing = [sum(row.num_missing.values()) for row in rows]
        tables["scores"] = rows, _by_parts("score", cells, missing, 1)
    if baseline is not None:
        pairs = mt_bench_pairs(prompts, judgments, baseline)
        sides = [(row.system, row.win, row.by_turn, row.by_category) for row in pairs]
        lines = _by_parts(f"against {baseline}", sides, [row.num_missing for row in pairs], 100)
        lines[0] += ["both orders: wins", "ties", "losses", "adjusted"]
        for line, row in zip(lines[1:], pairs, strict=True):
            line += [*map(str, (row.num_wins, row.num_ties, row.num_losses))]
            line.append(f"{100 * row.win_rate_adjusted:.2f}")
        tables["pairs"] = pairs, lines
    return tables


def _by_parts(
    title: str,
    rows: Sequence[tuple[str, Estimate, dict[int, Estimate], dict[str, Estimate]]],
    missing: Sequence[int],
    factor: int,
) -> list[list[str]]:
    turns = sorted({turn for _, _, by_turn, _ in rows for turn in by_turn})
    names = list(dict.fromkeys(name for *_, by_category in rows for name in by_category))
    head = [title, "overall", "95 %", *(f"turn {turn}" for turn in turns), *names, "missing"]
    lines = [head]
    for (system, overall, by_turn, by_category), num in zip(rows, missing, strict=True):
        parts = [by_turn.get(turn) for turn in turns] + [by_category.get(name) for name in names]
        values = ["-" if each is None else f"{factor * each['value']:.2f}" for each in parts]
        whole = f"{factor * overall['value']:.2f}"
        lines.append([system, whole, _interval(overall, factor), *values, str(num)])
    return lines


def _interval(estimate: Estimate, factor: int) -> str:
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return "-"
    return f"{factor * low:.2f} to {factor * high:.2f}"
