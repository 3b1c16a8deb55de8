"""`prefopt report` of answers and judgments."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import typer

from prefopt.commands.judge import read_systems
from prefopt.comparison.assemble import Gathered, Judged, report_of
from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.judge.judgments import read_judgments
from prefopt.evaluation.judge.replay import TEXTS, text_digest
from prefopt.evaluation.protocols import alpaca_eval, mt_bench
from prefopt.evaluation.report.write import HTML_NAME, write_report
from prefopt.evaluation.suites import read_suite
from prefopt.evaluation.types import Answer, Judgment
from prefopt.train.run_folder import installed_versions

_TITLES: dict[str, Callable[[str], str]] = {
    "alpaca_eval": alpaca_eval.title,
    "mt_bench": mt_bench.title,
}


def run(
    prompts: str,
    *,
    answers: Sequence[Path],
    judgments: Sequence[Path],
    baseline: str | None,
    output: Path,
) -> None:
    """Write a report of everything.

    Args:
        prompts: the suite that was answered.
        answers: files of prefopt generate, one per system.
        judgments: files of prefopt judge, one per judge; the first one leads.
        baseline: system that the others are compared with; by default the one beside the prompts.
        output: folder of the report.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    suite = read_suite(prompts)
    known = {prompt.prompt_id: prompt for prompt in suite.prompts}
    systems: dict[str, Sequence[Answer]] = {
        name: list(given.values()) for name, given in read_systems(answers, known).items()
    }
    if suite.baseline is not None and suite.baseline not in systems:
        systems = {suite.baseline: suite.baseline_answers, **systems}
    against = baseline or suite.baseline or next(iter(systems), "")
    if against not in systems:
        raise UserError(f"--baseline: no answers of '{against}'. {did_you_mean(against, systems)}")
    notes = list(suite.notes)
    judged = [_judged(path, systems, notes) for path in judgments]
    names = [each.name for each in judged]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--judgments: two files are of the judge {twice}. Give one of each judge.")
    title = _TITLES.get(suite.format, _plain_title)
    gathered = Gathered(
        title=title(names[0]),
        protocol="; ".join(title(name) for name in names),
        command=shlex.join(["prefopt", *sys.argv[1:]]),
        versions=installed_versions(),
        prompts=suite.prompts,
        methods={name: [name] for name in systems},
        seeds={},
        settings={},
        baseline=against,
        sanity=[name for name in ("constant", "longest") if name in systems],
        answers=systems,
        judged=judged,
        notes=notes,
    )
    write_report(report_of(gathered, None), output)
    typer.echo(f"report in {output / HTML_NAME}")


def _plain_title(judge: str) -> str:
    return f"Answers judged by {judge}"


def _judged(path: Path, answers: Mapping[str, Sequence[Answer]], notes: list[str]) -> Judged:
    """What a file says of these answers; what it says of earlier ones is left out and noted."""
    header, judgments = read_judgments(path)
    judge = header["judge"]
    known = {
        (system, answer.prompt_id, answer.sample): answer
        for system, given in answers.items()
        for answer in given
    }
    kept = [each for each in judgments if _is_of(each, known)]
    num_other = len(judgments) - len(kept)
    if num_other and not kept:
        raise UserError(
            f"{path}: all judgments are of other answers than those given. Give the answers that "
            "were judged, or judge these: prefopt judge run."
        )
    if num_other:
        notes.append(f"{num_other:,} judgments by {judge['name']} are of other answers; left out.")
    return Judged(name=judge["name"], identity=judge["identity"], judgments=kept)


def _is_of(judgment: Judgment, answers: Mapping[tuple[str, str, int], Answer]) -> bool:
    """Whether the texts are those that were judged, as far as the file says which these were."""
    systems = [each for each in (judgment.system, judgment.opponent) if each is not None]
    texts = judgment.extra.get(TEXTS, [None] * len(systems))
    for system, text in zip(systems, texts, strict=True):
        answer = answers.get((system, judgment.prompt_id, judgment.sample))
        if text is not None and answer is not None and text != text_digest(answer, judgment.turn):
            return False
    return True
