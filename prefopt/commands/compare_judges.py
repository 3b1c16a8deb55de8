"""The judges of a comparison: tried before anything is trained, in memory only while they judge."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import typer

from prefopt.comparison.assemble import Judged
from prefopt.comparison.section import ComparisonSection
from prefopt.errors import UserError
from prefopt.evaluation.analysis_methods import NULL_ANSWER
from prefopt.evaluation.judge.base import Judge
from prefopt.evaluation.judge.build import build_judge
from prefopt.evaluation.judge.questions import by_place, pair_questions, score_questions
from prefopt.evaluation.judge.runner import run_judge
from prefopt.evaluation.judge.section import ReplaySection
from prefopt.evaluation.types import Answer, PairQuestion, Prompt, Question, ScoreQuestion

_UNUSABLE = ("api_error", "no_logprobs")
"""What a first question may not come to: with these, hours later no other one would do better."""


class Jury:
    """Asks the judges of a comparison, one after another."""

    def __init__(self, section: ComparisonSection) -> None:
        """Takes what is said of them; nothing is loaded."""
        self._section = section
        self._folder = section.output_dir / "judgments"

    @property
    def names(self) -> list[str]:
        """As in the file; the first one picks settings."""
        return list(self._section.judges)

    def check(self, prompt: Prompt, *, asks: bool) -> None:
        """Build every judge and see that it can be asked what will be.

        Args:
            prompt: what a question is put about.
            asks: put one, to judges that have not judged here yet.

        Raises:
            UserError: for the first judge that cannot be used.
        """
        for name, section in self._section.judges.items():
            try:
                with closing(build_judge(section)) as judge:
                    self._check_kinds(judge)
                    is_new = not self._file(name, "test").exists()
                    if asks and is_new and not isinstance(section, ReplaySection):
                        self._try(judge, prompt)
            except UserError as error:
                raise UserError(f"judges.{name}: {error}") from error

    def ask(
        self,
        name: str,
        suite: str,
        pairs: Sequence[tuple[str, str]],
        answers: Mapping[str, Sequence[Answer]],
        prompts: Mapping[str, Prompt],
        systems: Sequence[str] = (),
    ) -> Judged:
        """Verdicts of a judge on pairs of systems and, where wanted, its scores of systems.

        Raises:
            UserError: if it cannot be used, or left too much unanswered.
        """
        placed = {system: by_place(system, given, prompts) for system, given in answers.items()}
        scored = systems if self._section.judges_score else ()
        with closing(build_judge(self._section.judges[name])) as judge:
            found = run_judge(
                judge,
                pair_questions(pairs, placed, prompts),
                score_questions(scored, placed, prompts),
                self._file(name, suite),
                allow_missing=self._section.allow_missing,
                progress=True,
            )
            identity = judge.identity
        typer.echo(f"judge {name}: {len(found):,} judgments of {suite} answers")
        return Judged(name=name, identity=identity, judgments=found)

    def _file(self, name: str, suite: str) -> Path:
        return self._folder / suite / f"{name}.jsonl"

    def _check_kinds(self, judge: Judge) -> None:
        if "pair" not in judge.kinds:
            raise UserError("it compares no pairs. Choose another judge.")
        if self._section.judges_score and "score" not in judge.kinds:
            raise UserError("it gives no scores. Set judges_score: false, or choose another judge.")

    def _try(self, judge: Judge, prompt: Prompt) -> None:
        one, other = (
            Answer(prompt_id=prompt.prompt_id, turns=(text,) * len(prompt.turns))
            for text in (NULL_ANSWER, "I do not know.")
        )
        questions: list[Question] = [PairQuestion(prompt=prompt, first=one, second=other)]
        if self._section.judges_score:
            questions.append(ScoreQuestion(prompt=prompt, answer=one))
        for question in questions:
            reply = judge.ask(question)
            if reply.status in _UNUSABLE:
                raise UserError(
                    f"a first question came to {reply.status}: {reply.problem}. Mend the judge; "
                    "prefopt judge doctor tells more."
                )
