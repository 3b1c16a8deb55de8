"""`prefopt report`: from answers and judgments, or the pages of a report.json anew."""

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from prefopt.commands import report_judged
from prefopt.errors import UserError
from prefopt.evaluation.numbers import SCHEMA, Report
from prefopt.evaluation.report.write import HTML_NAME, JSON_NAME, write_report


def run(
    folder: Path | None,
    *,
    prompts: str | None,
    answers: Sequence[Path],
    judgments: Sequence[Path],
    baseline: str | None,
    output: Path | None,
) -> None:
    """Render what a folder has, or analyse answers and judgments; see `prefopt report --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    if folder is not None:
        if prompts or answers or judgments or baseline:
            raise UserError("report: give a FOLDER, or --prompts, --answers and --judgments.")
        typer.echo(f"report in {rewrite(folder, output) / HTML_NAME}")
        return
    given = {"--prompts": prompts, "--answers": answers, "--judgments": judgments}
    missing = [name for name, value in given.items() if not value]
    if prompts is None or missing:
        raise UserError(f"report: {', '.join(missing)} missing. Or give a FOLDER with a report.")
    report_judged.run(
        prompts,
        answers=answers,
        judgments=judgments,
        baseline=baseline,
        output=output or Path("report"),
    )


def rewrite(path: Path, output: Path | None = None) -> Path:
    """Write report.json, report.html and report.md from the numbers of a report.json.

    Args:
        path: the file, or the folder that it is in.
        output: folder to write into; by default the one that the file is in.

    Returns:
        The folder that was written into.

    Raises:
        UserError: if there is no such file, or it is no report of this version.
    """
    source = path / JSON_NAME if path.is_dir() else path
    folder = output or source.parent
    write_report(_read(source), folder)
    return folder


def _read(path: Path) -> Report:
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give a {JSON_NAME}, or the folder that has one.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON. Give a {JSON_NAME} that prefopt wrote.") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{path}: its schema is {schema!r}, not {SCHEMA!r}. Give a {JSON_NAME} that this "
            "version of prefopt wrote."
        )
    missing = sorted(Report.__annotations__.keys() - report.keys())
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing. Write the report anew.")
    whole: Report = report
    return whole
