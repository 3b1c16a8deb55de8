"""Typed judges behind a URL: OpenAI's Decisions and System One."""

from typing import Any

from prefopt.evaluation.judge.base import as_text
from prefopt.evaluation.judge.endpoint import CallFailed, Endpoint, Posted
from prefopt.evaluation.judge.section import DecisionsSection, SystemOneSection
from prefopt.evaluation.judge.typed import QUESTION_NAME, TypedQuestions
from prefopt.evaluation.types import Kind, Question, Reply


class TypedEndpointJudge:
    """POST /v1/decisions or /v1/systemone.

    Args:
        section: which of them, and how to reach it.

    Raises:
        UserError: if the variable of the key is not set.
    """

    def __init__(self, section: DecisionsSection | SystemOneSection) -> None:
        self._section = section
        self._questions = TypedQuestions(section)
        self._is_system_one = section.backend == "systemone"
        self.name = section.name or section.model
        self.kinds: frozenset[Kind] = frozenset({"pair", "score"})
        self.levels = section.levels
        self.num_in_flight = section.num_in_flight
        self.max_calls = section.max_calls
        self.identity: dict[str, Any] = {
            "backend": section.backend,
            "model": section.model,
            "prompts": self._questions.identity,
            "levels": list(section.levels),
        }
        self._endpoint = Endpoint(section)

    def rendered(self, question: Question) -> str:
        """State and question."""
        return as_text(self._asked(question))

    def ask(self, question: Question) -> Reply:
        """The probabilities of the options.

        Raises:
            JudgeUnusable: if no question can be answered.
        """
        path = "/systemone" if self._is_system_one else "/decisions"
        try:
            posted = self._endpoint.post(
                path, {"model": self._section.model, **self._asked(question)}
            )
        except CallFailed as failed:
            return Reply(
                status="api_error", problem=failed.problem, num_attempts=failed.num_attempts
            )
        about = {"num_attempts": posted.num_attempts, "usage": posted.usage}
        return self._questions.reply(question, _answer(posted), **about)

    def close(self) -> None:
        """Close all connections."""
        self._endpoint.close()

    def _asked(self, question: Question) -> dict[str, Any]:
        if self._is_system_one:
            return self._questions.system_one(question)
        return self._questions.decisions(question)


def _answer(posted: Posted) -> Any:
    """The one answer of a reply: by its name, or the only one of a list."""
    answers = posted.body.get("answers")
    if isinstance(answers, dict):
        return answers.get(QUESTION_NAME)
    return answers[0] if isinstance(answers, list) and answers else None
