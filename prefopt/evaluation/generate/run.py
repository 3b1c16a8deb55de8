"""From prompts to a file of answers that grows, survives a kill and is gone on with."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prefopt import __version__
from prefopt.data.identity import digest
from prefopt.evaluation.files import Lines
from prefopt.evaluation.generate.answers import (
    check_header,
    header_of,
    line_of,
    read_answers,
)
from prefopt.evaluation.generate.base import Backend, check_unique, requests_for
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Answer, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a file of answers holds."""

    num_answers: int
    mean_tokens: float | None
    """Per answer, all turns together; None where no backend counted."""
    share_cut: float
    """Of answers of which a turn was cut by the limit of tokens."""
    share_empty: float
    """Of answers of which a turn says nothing."""


def generate(
    backend: Backend,
    prompts: Sequence[Prompt],
    section: GenerationSection,
    path: Path,
    *,
    system: str,
    shows_progress: bool | None = None,
) -> list[Answer]:
    """Answers to all prompts, those that the file has and those that it lacked.

    Args:
        backend: what answers.
        prompts: each once.
        section: how it answers.
        path: the file, new or begun by the same call.
        system: its name in tables.
        shows_progress: a bar on standard error; by default where that is a terminal.

    Raises:
        UserError: if the file was begun with other settings or prompts, or one cannot be answered.
    """
    check_unique(prompts)
    requests = requests_for(prompts, section)
    header = header_of(
        system,
        backend.model,
        backend.decode,
        chat_template=backend.chat_template,
        versions={"prefopt": __version__, **backend.versions},
        weights=backend.weights,
        prompts=digest_of_prompts(prompts),
    )
    is_new = not path.exists() or path.stat().st_size == 0
    if not is_new:
        # Before it is opened, which cuts the last line off if it has no end.
        check_header(path, header)
    with Lines(path) as lines:
        if is_new:
            lines.append(header)
        done = {(each.prompt_id, each.sample) for each in read_answers(path)[1]}
        with _bar(shows_progress) as progress:
            task = progress.add_task(system, total=len(requests), completed=len(done))
            for request, answer in backend.answers(requests, done):
                lines.append(line_of(answer, seed=request.seed))
                progress.advance(task)
    return read_answers(path)[1]


def digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    """Hash of a set of prompts, whatever their order."""
    return digest(" ".join(sorted(prompt.prompt_id for prompt in prompts)))


def outcome_of(answers: Sequence[Answer]) -> Outcome:
    """Lengths, and how many answers are cut or empty."""
    num = len(answers)
    assert num, "no answers"
    counts: Counter[str] = Counter()
    for answer in answers:
        counts["cut"] += "length" in answer.finish_reasons
        counts["empty"] += any(not turn.strip() for turn in answer.turns)
    tokens = [sum(answer.num_tokens) for answer in answers if answer.num_tokens]
    return Outcome(
        num_answers=num,
        mean_tokens=sum(tokens) / len(tokens) if tokens else None,
        share_cut=counts["cut"] / num,
        share_empty=counts["empty"] / num,
    )


def _bar(shows_progress: bool | None) -> Progress:
    is_shown = sys.stderr.isatty() if shows_progress is None else shows_progress
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not is_shown,
    )
