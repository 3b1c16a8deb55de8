"""Questions in the form of System One and Decisions: a state, typed options, probabilities back.

The order of the options is that of showing, so both orders are asked as with any other judge.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.evaluation.judge.base import as_text, in_order
from prefopt.evaluation.judge.section import TypedSection
from prefopt.evaluation.judge.templates import digest, level_name
from prefopt.evaluation.judge.texts import state_of
from prefopt.evaluation.types import PairQuestion, Question, Reply

_DUTIES = (
    "Weigh whether it does what the request asks, whether it is true, and whether it is clear. "
    "Neither length nor the order of showing counts."
)
_WHICH = f"Which of the two answers, or of the last answers, is better? {_DUTIES}"
_HOW_GOOD = f"How good is the answer, or the last answer? {_DUTIES}"
_OPTIONS = ("Answer A is better", "Answer B is better", "They are equally good")
QUESTION_NAME = "judgment"
_ROUNDING = 0.01


class TypedQuestions:
    """What is asked of a typed judge, and how its answer is read.

    Args:
        section: levels, and whether a tie is offered.
    """

    def __init__(self, section: TypedSection) -> None:
        self._options = _OPTIONS if section.ties else _OPTIONS[:2]
        self._levels = [level_name(level) for level in section.levels]
        told = as_text([_WHICH, _HOW_GOOD, self._options, self._levels])
        self.identity = {"name": "own-typed", "sha": digest(told), "ties": section.ties}

    def system_one(self, question: Question) -> dict[str, Any]:
        """State and question as /v1/systemone and the decision pipeline take them."""
        asked: dict[str, Any]
        if isinstance(question, PairQuestion):
            criteria = dict.fromkeys(self._options)
            asked = {"type": "choice", "instructions": _WHICH, "criteria": criteria}
        else:
            asked = {"type": "score", "instructions": _HOW_GOOD, "criteria": self._levels}
        return {"state": state_of(question), "questions": {QUESTION_NAME: asked}}

    def decisions(self, question: Question) -> dict[str, Any]:
        """Input and question as /v1/decisions takes them."""
        asked: dict[str, Any] = {"name": QUESTION_NAME}
        if isinstance(question, PairQuestion):
            choices = [{"value": option} for option in self._options]
            asked |= {"type": "choice", "instructions": _WHICH, "choices": choices}
        else:
            levels = [{"label": level} for level in self._levels]
            asked |= {"type": "score", "instructions": _HOW_GOOD, "levels": levels}
        return {"input": state_of(question), "questions": [asked]}

    def reply(self, question: Question, answer: Any, **about: Any) -> Reply:
        """What an answer says: `{"type", "probabilities"}`, the latter a mapping or a list."""
        raw = as_text(answer)
        if isinstance(answer, dict) and answer.get("type") == "refusal":
            return Reply(status="refusal", raw=raw, problem="the judge declined", **about)
        by_option = _by_option(answer)
        labels: Sequence[str] = self._options
        if not isinstance(question, PairQuestion):
            labels = self._level_keys(by_option)
        probs = in_order(by_option, labels)
        if probs is None or abs(sum(by_option[label] for label in labels) - 1) > _ROUNDING:
            problem = "the answer holds no probabilities of these options that sum to 1"
            return Reply(status="parse_error", raw=raw, problem=problem, **about)
        if isinstance(question, PairQuestion) and len(labels) == 2:
            probs = (*probs, 0.0)
        return Reply(status="ok", probs=probs, raw=raw, **about)

    def _level_keys(self, by_option: Mapping[str, Any]) -> Sequence[str]:
        """Levels by their names, or by their places from 0, as System One says them."""
        if by_option.keys() == set(self._levels):
            return self._levels
        return [str(place) for place in range(len(self._levels))]


def _by_option(answer: Any) -> dict[str, Any]:
    """Option -> probability, from a mapping or from a list of `{"value" | "label", ...}`."""
    probabilities = answer.get("probabilities") if isinstance(answer, dict) else None
    if isinstance(probabilities, dict):
        return {str(key): value for key, value in probabilities.items()}
    if not isinstance(probabilities, list):
        return {}
    rows: list[dict[str, Any]] = [
        each for each in probabilities if isinstance(each, dict) and "probability" in each
    ]
    # A score has a label beside its value, which is its place.
    return {str(each.get("label", each.get("value"))): each["probability"] for each in rows}
