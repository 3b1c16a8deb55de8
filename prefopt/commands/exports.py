"""`prefopt formats`: files of AlpacaEval and MT-Bench, from ours and to ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.files import write_json_lines
from prefopt.evaluation.formats import alpaca_eval, mt_bench, mt_bench_judgments
from prefopt.evaluation.generate.answers import (
    check_same_prompts,
    header_of,
    line_of,
    read_answers,
    read_beside,
)
from prefopt.evaluation.generate.base import Key
from prefopt.evaluation.judge.judgments import SCHEMA, read_judgments, to_line
from prefopt.evaluation.suites import read_prompts
from prefopt.evaluation.types import Answer, Judgment, Prompt

ANSWERS = ("alpaca-outputs", "mt-bench-answers")
JUDGMENTS = ("alpaca-annotations", "mt-bench-single", "mt-bench-pair")


def export(
    format: str,
    output: Path,
    *,
    prompts: str,
    answers: Sequence[Path],
    judgments: Path | None,
    baseline: str | None,
) -> None:
    """Write a file that the official program reads; see `prefopt formats export --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    _check_format(format)
    _check_options(format, answers, judgments, baseline)
    asked = read_prompts(prompts)
    if format in ANSWERS:
        num = _export_answers(format, output, asked, answers[0])
    else:
        assert judgments is not None
        num = _export_judgments(format, output, asked, answers, judgments, baseline)
    typer.echo(f"{num:,} rows in {output}")


def load(format: str, source: Path, output: Path, *, prompts: str | None) -> None:
    """Write answers or judgments of an official file in our form; see `prefopt formats import`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    _check_format(format)
    if format.startswith("mt-bench") and prompts is None:
        raise UserError("MT-Bench's files name questions by number only. Add --prompts FILE.")
    if format.startswith("alpaca") and prompts is not None:
        raise UserError("--prompts has no effect, AlpacaEval's files hold them. Remove it.")
    if output.exists():
        raise UserError(f"{output} is there already. Remove it or name another file.")
    asked = [] if prompts is None else read_prompts(prompts)
    if format in ANSWERS:
        num = _import_answers(format, source, output, asked)
    else:
        num = _import_judgments(format, source, output, asked)
    typer.echo(f"{num:,} {'answers' if format in ANSWERS else 'judgments'} in {output}")


def _check_format(format: str) -> None:
    known = [*ANSWERS, *JUDGMENTS]
    if format not in known:
        raise UserError(f"no format '{format}'. {did_you_mean(format, known)}")


def _check_options(
    format: str, answers: Sequence[Path], judgments: Path | None, baseline: str | None
) -> None:
    if format in ANSWERS:
        if len(answers) != 1:
            raise UserError(f"{format} is of one system. Give one --answers FILE.")
        unused: dict[str, Any] = {"--judgments": judgments, "--baseline": baseline}
    else:
        if judgments is None:
            raise UserError(f"{format} holds judgments. Add --judgments FILE.")
        is_alpaca = format == "alpaca-annotations"
        if is_alpaca and baseline is None:
            raise UserError("AlpacaEval compares with one system. Name it: --baseline NAME.")
        unused = {} if is_alpaca else {"--baseline": baseline, "--answers": answers or None}
    for option, value in unused.items():
        if value is not None:
            raise UserError(f"{option} has no effect on {format}. Remove it.")


def _export_answers(format: str, output: Path, prompts: list[Prompt], path: Path) -> int:
    header, answers = read_answers(path)
    check_same_prompts(path, answers, {prompt.prompt_id for prompt in prompts})
    system = header["system"]
    if format == "alpaca-outputs":
        alpaca_eval.write_model_outputs(output, prompts, answers, system)
    else:
        mt_bench.write_model_answers(
            output,
            prompts,
            answers,
            system,
            tstamp=path.stat().st_mtime,
            beside=read_beside(path),
        )
    return len(prompts)


def _export_judgments(
    format: str,
    output: Path,
    prompts: list[Prompt],
    answers: Sequence[Path],
    path: Path,
    baseline: str | None,
) -> int:
    judgments = read_judgments(path)[1]
    if format == "alpaca-annotations":
        assert baseline is not None
        by_system = {header["system"]: given for header, given in map(read_answers, answers)}
        return alpaca_eval.write_annotations(output, prompts, judgments, baseline, by_system)
    write = (
        mt_bench_judgments.write_single
        if format == "mt-bench-single"
        else mt_bench_judgments.write_pair
    )
    return write(output, prompts, judgments)


def _import_answers(format: str, source: Path, output: Path, prompts: list[Prompt]) -> int:
    beside: Mapping[Key, Mapping[str, Any]] = {}
    answers: list[Answer]
    if format == "alpaca-outputs":
        system, _, answers = alpaca_eval.read_model_outputs(source)
    else:
        system, answers, beside = mt_bench.read_model_answers(source, prompts)
    header = header_of(system, system, {"imported_as": format, "file": source.name})
    lines = [line_of(each, extra=beside.get((each.prompt_id, each.sample))) for each in answers]
    write_json_lines(output, [header, *lines])
    return len(answers)


def _import_judgments(format: str, source: Path, output: Path, prompts: list[Prompt]) -> int:
    judgments: Sequence[Judgment]
    if format == "alpaca-annotations":
        judgments = alpaca_eval.read_annotations(source).judgments
    elif format == "mt-bench-single":
        judgments = mt_bench_judgments.read_single(source, prompts)
    else:
        judgments = mt_bench_judgments.read_pair(source, prompts)
    names = sorted({judgment.judge for judgment in judgments})
    if len(names) > 1:
        raise UserError(f"{source}: judgments of {', '.join(names)}. Part them, a file per judge.")
    identity = {"imported_as": format, "file": source.name}
    header = {"schema": SCHEMA, "judge": {"name": names[0], "identity": identity}}
    write_json_lines(output, [header, *map(to_line, judgments)])
    return len(judgments)
