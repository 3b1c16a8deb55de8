"""What every judge can do, and the error that says that one cannot be used at all."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from prefopt.errors import UserError
from prefopt.evaluation.types import Answer, Kind, Question, Reply, ScoreQuestion


@runtime_checkable
class Judge(Protocol):
    """Something that answers questions with probabilities; safe to ask from several threads."""

    name: str
    """As tables and file headers call it."""
    identity: dict[str, Any]
    """Plain values: backend, model, prompt and parameters, all that can change a reply; no key."""
    kinds: frozenset[Kind]
    """What it can be asked."""
    levels: tuple[float, ...]
    """Of scores, lowest first; empty if it knows no scores."""
    num_in_flight: int
    """How many questions may be asked at the same time."""
    max_calls: int | None
    """The most questions to put to it in one run; None for as many as there are."""

    def rendered(self, question: Question) -> str:
        """Exactly what would be asked, as text.

        Raises:
            UserError: if this judge cannot be asked that question.
        """
        ...

    def ask(self, question: Question) -> Reply:
        """What it says.

        Raises:
            JudgeUnusable: if what went wrong would go wrong with any other question, too.
        """
        ...

    def close(self) -> None:
        """Give back connections and memory."""
        ...


class JudgeUnusable(UserError):
    """No question can be answered: unreachable, a wrong key, a wrong model, a wrong parameter."""


def as_text(value: Any) -> str:
    """Plain values as JSON with sorted keys, for hashes."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def answers_of(question: Question) -> tuple[Answer, ...]:
    """The answers that a question is about, in the order in which they are shown."""
    if isinstance(question, ScoreQuestion):
        return (question.answer,)
    return (question.first, question.second)


def one_line(text: str, limit: int = 300) -> str:
    """Text without line breaks, cut to a length that a message can hold."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 3]}..."


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def in_order(probs: Mapping[str, Any], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Probabilities of labels, made to sum to 1; None unless each is there and they can be."""
    values = [probs.get(label) for label in labels]
    if not all(isinstance(value, int | float) and value >= 0 for value in values):
        return None
    numbers = [float(value) for value in values if value is not None]
    return normalised(numbers)


def normalised(weights: Sequence[float]) -> tuple[float, ...] | None:
    """Weights divided by their sum; None if that is 0 or not finite."""
    total = math.fsum(weights)
    if not 0 < total < math.inf:
        return None
    return tuple(weight / total for weight in weights)
