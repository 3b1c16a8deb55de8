"""Asking a judge about many answers: both orders, each question once, every reply kept."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prefopt.errors import UserError
from prefopt.evaluation.judge.asking import ask_all
from prefopt.evaluation.judge.base import Judge, answers_of, as_text
from prefopt.evaluation.judge.judgments import JudgmentWriter, place_of
from prefopt.evaluation.judge.replay import TEXTS, text_digests
from prefopt.evaluation.judge.texts import check_turns
from prefopt.evaluation.types import Judgment, PairQuestion, Question, Reply, ScoreQuestion

LEAST_COVERAGE = 0.99
IDENTICAL = "identical answers"


@dataclass(frozen=True, slots=True)
class _Asked:
    """One judgment that is wanted."""

    question: Question
    system: str
    opponent: str | None
    key: str

    @property
    def is_identical(self) -> bool:
        return isinstance(self.question, PairQuestion) and len(_texts(self.question)) == 1

    def judgment(self, judge: Judge, reply: Reply) -> Judgment:
        question = self.question
        return Judgment(
            key=self.key,
            prompt_id=question.prompt.prompt_id,
            turn=question.turn,
            sample=answers_of(question)[0].sample,
            kind=question.kind,
            system=self.system,
            opponent=self.opponent,
            levels=judge.levels if question.kind == "score" else (),
            judge=judge.name,
            reply=reply,
            asked_at=datetime.now(UTC).isoformat(timespec="seconds"),
            extra={TEXTS: text_digests(question)},
        )


def run_judge(
    judge: Judge,
    pairs: Iterable[tuple[PairQuestion, str, str]],
    scores: Iterable[tuple[ScoreQuestion, str]],
    path: Path,
    *,
    allow_missing: bool = False,
    progress: bool = False,
) -> list[Judgment]:
    """Ask everything that the file does not have yet, append it, and give all that was wanted.

    Every pair is asked in both orders. Identical answers are a tie, and nobody is asked. Questions
    with the same text are asked once. Lines of status api_error are asked again.

    Args:
        judge: whom to ask.
        pairs: a question, in either order, with the systems of its first and second answer.
        scores: a question with the answer's system.
        path: file of judgments to append to.
        allow_missing: give what there is, whatever the coverage.
        progress: draw a bar, if standard error is a terminal.

    Raises:
        UserError: if the judge cannot be asked such questions or cannot be used at all; if the file
            is another judge's; and, after all is written, if fewer than 99 % have a judgment.
        KeyboardInterrupt: after Ctrl-C, when what is in flight has been written.
    """
    wanted = [*_both_orders(judge, pairs), *_scores(judge, scores)]
    writer = JudgmentWriter(judge, path)
    try:
        found, num_left = _ask_missing(judge, wanted, writer, progress)
    finally:
        writer.close()
    if num_left and not allow_missing:
        raise UserError(
            f"stopped after judge.max_calls = {judge.max_calls} questions, {num_left} are left. "
            f"Run again to go on; {path} keeps what is there."
        )
    if not allow_missing:
        check_coverage(found, path)
    return found


def check_coverage(judgments: Sequence[Judgment], path: Path) -> None:
    """Refuse to go on where too much is missing.

    Raises:
        UserError: with counts by status and one of the problems.
    """
    by_status = Counter(judgment.reply.status for judgment in judgments)
    if not judgments or by_status["ok"] / len(judgments) >= LEAST_COVERAGE:
        return
    missing = ", ".join(f"{n} {status}" for status, n in by_status.most_common() if status != "ok")
    problem = next(each.reply.problem for each in judgments if not each.is_ok)
    raise UserError(
        f"only {by_status['ok']} of {len(judgments)} questions have a judgment "
        f"({100 * by_status['ok'] / len(judgments):.1f}%, wanted {100 * LEAST_COVERAGE:g}%): "
        f"{missing}; such as: {problem}. Run again to ask those with api_error, or allow missing "
        f"ones (--allow-missing, or allow_missing: true in a comparison). {path} keeps them."
    )


def _both_orders(judge: Judge, pairs: Iterable[tuple[PairQuestion, str, str]]) -> list[_Asked]:
    found: list[_Asked] = []
    for question, system, opponent in pairs:
        swapped = PairQuestion(
            prompt=question.prompt,
            first=question.second,
            second=question.first,
            turn=question.turn,
        )
        found.append(_asked(judge, question, system, opponent))
        found.append(_asked(judge, swapped, opponent, system))
    return found


def _scores(judge: Judge, scores: Iterable[tuple[ScoreQuestion, str]]) -> list[_Asked]:
    return [_asked(judge, question, system, None) for question, system in scores]


def _asked(judge: Judge, question: Question, system: str, opponent: str | None) -> _Asked:
    if question.kind not in judge.kinds:
        raise UserError(
            f"judge {judge.name} cannot be asked for a {question.kind}, only for "
            f"{' and '.join(sorted(judge.kinds))}. Choose another kind or judge."
        )
    check_turns(question)
    text = as_text([judge.identity, judge.rendered(question)])
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    return _Asked(question, system, opponent, key)


def _ask_missing(
    judge: Judge, wanted: Sequence[_Asked], writer: JudgmentWriter, progress: bool
) -> tuple[list[Judgment], int]:
    """All judgments in the order in which they are wanted, and how many are left unasked."""
    known = {place_of(each): each for each in writer.known if each.reply.status != "api_error"}
    replies = {each.key: each.reply for each in known.values()}
    open_questions: dict[str, list[_Asked]] = {}

    def keep(asked: _Asked, reply: Reply) -> None:
        judgment = asked.judgment(judge, reply)
        if place_of(judgment) not in known:
            known[place_of(judgment)] = judgment
            writer.append(judgment)

    for asked in wanted:
        if asked.is_identical:
            tie = Reply(status="ok", probs=(0.0, 0.0, 1.0), raw=IDENTICAL, num_attempts=0)
            keep(asked, tie)
        elif asked.key in replies:
            keep(asked, replies[asked.key])
        else:
            open_questions.setdefault(asked.key, []).append(asked)
    groups = list(open_questions.values())
    now = groups[: judge.max_calls]
    with _bar(progress) as bar:
        task = bar.add_task(f"judge {judge.name}", total=len(now))

        def take(index: int, reply: Reply) -> None:
            for asked in now[index]:
                keep(asked, reply)
            bar.advance(task)

        ask_all(judge, [group[0].question for group in now], take)
    places = dict.fromkeys(place_of(asked.judgment(judge, _NOTHING)) for asked in wanted)
    return [known[place] for place in places if place in known], len(groups) - len(now)


_NOTHING = Reply(status="api_error", num_attempts=0)


def _bar(is_wanted: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (is_wanted and console.is_terminal),
    )


def _texts(question: PairQuestion) -> set[tuple[str, ...]]:
    shown = (question.first, question.second)
    return {answer.turns[: question.turn] for answer in shown}
