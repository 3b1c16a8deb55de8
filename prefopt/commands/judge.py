"""`prefopt judge`: a judge's replies about answers, and whether a judge is fit to give them."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import typer

from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.generate.answers import check_same_prompts, read_answers
from prefopt.evaluation.judge.base import Judge
from prefopt.evaluation.judge.build import build_judge
from prefopt.evaluation.judge.doctor import Findings, examine
from prefopt.evaluation.judge.questions import Answers, pair_questions, score_questions
from prefopt.evaluation.judge.runner import run_judge
from prefopt.evaluation.judge.section import AnyJudgeSection, read_section
from prefopt.evaluation.suites import read_prompts
from prefopt.evaluation.types import Judgment, Prompt
from prefopt.yaml_text import read_mapping

_UNFIT = 1
_PAIRS = ("baseline", "all")
_KINDS = ("pair", "score", "both")


def run(
    section: Path,
    *,
    prompts: str,
    answers: Sequence[Path],
    baseline: str | None,
    pairs: str | None,
    kind: str | None,
    turns: Sequence[int] | None,
    output: Path | None,
    allow_missing: bool,
) -> None:
    """Ask the judge about all answers; see `prefopt judge run --help`.

    Raises:
        UserError: for a mistake that the user can mend, and if too few questions have a judgment.
    """
    if pairs is not None and pairs not in _PAIRS:
        raise UserError(f"--pairs: '{pairs}'. {did_you_mean(pairs, _PAIRS)}")
    if kind is not None and kind not in _KINDS:
        raise UserError(f"--kind: '{kind}'. {did_you_mean(kind, _KINDS)}")
    suite = {prompt.prompt_id: prompt for prompt in read_prompts(prompts)}
    systems = read_systems(answers, suite)
    with closing(build_judge(load_section(section))) as judge:
        asks = kind or ("pair" if "pair" in judge.kinds else "score")
        opponents = _opponents(list(systems), baseline, pairs) if asks != "score" else []
        wanted_pairs = pair_questions(opponents, systems, suite, turns) if opponents else ()
        wanted_scores = score_questions(systems, systems, suite, turns) if asks != "pair" else ()
        path = output or Path("judgments") / f"{file_name(judge.name)}.jsonl"
        found = run_judge(
            judge,
            wanted_pairs,
            wanted_scores,
            path,
            allow_missing=allow_missing,
            progress=sys.stderr.isatty(),
        )
    if not found:
        raise UserError("there is nothing to judge: no two answers to the same prompt and turn.")
    _say(judge, found, path)


def doctor(section: Path) -> int:
    """Probe a judge, print what was seen, and give the exit code: 0 if it is usable, else 1.

    Raises:
        UserError: if not even one question could be answered.
    """
    settings = load_section(section)
    if settings.model_dump()["backend"] == "replay":
        raise UserError("a replay judge has nothing to say to new questions: nothing to examine.")
    with closing(build_judge(settings)) as judge:
        found = examine(judge)
    for line in (*_numbers(judge, found), *found.lines):
        typer.echo(line)
    return 0 if found.is_usable else _UNFIT


def load_section(path: Path) -> AnyJudgeSection:
    """The judge's section in a YAML file.

    Raises:
        UserError: if the file is absent or no such section.
    """
    return read_section(read_mapping(path, what="judge", keys="backend and its keys"))


def read_systems(paths: Sequence[Path], suite: Mapping[str, Prompt]) -> dict[str, Answers]:
    """Each system's answers to the prompts of the suite.

    Raises:
        UserError: if two files name the same system, or answers are missing or to other prompts.
    """
    found: dict[str, Answers] = {}
    files: dict[str, Path] = {}
    for path in paths:
        header, answers = read_answers(path)
        name = str(header["system"])
        if name in found:
            raise UserError(
                f"{files[name]} and {path} are both of the system '{name}'. Leave one out, or give "
                "one another name in its header."
            )
        check_same_prompts(path, answers, set(suite))
        num_missing = len(suite.keys() - {answer.prompt_id for answer in answers})
        if num_missing:
            raise UserError(
                f"{path}: no answer to {num_missing} of {len(suite)} prompts. Run prefopt generate "
                "to the end."
            )
        found[name] = {(answer.prompt_id, answer.sample): answer for answer in answers}
        files[name] = path
    return found


def file_name(name: str) -> str:
    """A judge's name as a file's."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "judge"


def _opponents(
    names: Sequence[str], baseline: str | None, pairs: str | None
) -> list[tuple[str, str]]:
    """Which systems are compared."""
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline: no answers of '{baseline}'. {did_you_mean(baseline, names)}")
    if len(names) < 2:
        raise UserError("there is nothing to compare: give --answers of two systems or more.")
    if pairs == "baseline" and baseline is None:
        raise UserError("--pairs baseline: which one is it? Name it with --baseline.")
    if pairs == "all" or baseline is None:
        return list(combinations(names, 2))
    return [(name, baseline) for name in names if name != baseline]


def _say(judge: Judge, found: Sequence[Judgment], path: Path) -> None:
    by_status = Counter(judgment.reply.status for judgment in found)
    num_ok = by_status.pop("ok", 0)
    missing = "".join(f", {n} {status}" for status, n in by_status.most_common())
    typer.echo(
        f"judge {judge.name}: {num_ok:,} of {len(found):,} judgments "
        f"({100 * num_ok / len(found):.1f}%){missing}; in {path}"
    )


def _numbers(judge: Judge, found: Findings) -> Iterator[str]:
    statuses = ", ".join(f"{n} {status}" for status, n in found.by_status.items())
    yield f"judge {judge.name}: {found.num_asked} questions: {statuses}"
    numbers: tuple[tuple[str, Any], ...] = (
        ("good answer preferred to bad", found.right_share),
        ("good answer scored higher", found.scores_right_share),
        ("same verdict in both orders", found.consistent_share),
        ("win rate of the first slot", found.first_slot_rate),
        ("the same, identical answers", found.identical_first),
        ("probability of all labels", found.label_mass),
        ("all labels among the tokens", found.seen_share),
    )
    for name, value in numbers:
        if value is not None:
            yield f"  {name:<30}{100 * value:6.1f}%"
