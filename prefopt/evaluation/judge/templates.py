"""What a chat model is told: our own short prompts, and the interface that others' files fill."""

import hashlib
import string
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from prefopt.evaluation.judge.texts import state_of
from prefopt.evaluation.types import Kind, Message, PairQuestion, Question

_DUTIES = (
    "Weigh whether it does what the request asks, whether it is true, and whether it is clear. "
    "Neither length nor the order of showing counts."
)
_OF_LAST_TURN = " Judge the last answer of the conversation."


@runtime_checkable
class Prompts(Protocol):
    """How questions become messages, and how the reply names what it chose."""

    identity: dict[str, Any]
    """Name and hash."""
    kinds: frozenset[Kind]
    """What can be asked with them."""
    is_bare: bool
    """Whether the reply is a label and nothing else; if not it ends with one in [[ ]]."""
    pair_labels: tuple[str, ...]
    """First better, second better, and tie if there is a third."""
    level_labels: tuple[str, ...]
    """One per level."""

    def messages(self, question: Question) -> list[Message]:
        """What is sent."""
        ...


def digest(text: str) -> str:
    """Short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def level_name(level: float) -> str:
    """A level as people write it: 7 and not 7.0."""
    return f"{level:g}"


class OwnPrompts:
    """Short prompts of our own.

    Args:
        is_bare: ask for nothing but a label, to read its log-probs; else for a short reason and a
            verdict in brackets.
        levels: the scores, lowest first.
        pair_labels: first better, second better, and tie if there is a third.
    """

    kinds: frozenset[Kind] = frozenset({"pair", "score"})

    def __init__(
        self, *, is_bare: bool, levels: Sequence[float], pair_labels: tuple[str, ...]
    ) -> None:
        self.is_bare = is_bare
        self.pair_labels = pair_labels
        names = tuple(level_name(level) for level in levels)
        # A label is read from one token, and many tokenizers split 10.
        is_lettered = is_bare and any(len(name) > 1 for name in names)
        self.level_labels = tuple(string.ascii_uppercase[: len(names)]) if is_lettered else names
        self._level_names = names
        told = self._ask_pair(is_last=False) + self._ask_score(is_last=False)
        self.identity = {"name": "own-label" if is_bare else "own-verdict", "sha": digest(told)}

    def messages(self, question: Question) -> list[Message]:
        """One message of the user: what to judge, then what to say."""
        is_last = question.turn > 1
        is_pair = isinstance(question, PairQuestion)
        asked = self._ask_pair(is_last) if is_pair else self._ask_score(is_last)
        return [Message(role="user", content=f"{state_of(question)}\n\n{asked}")]

    def _ask_pair(self, is_last: bool) -> str:
        first, second, *tie = self.pair_labels
        meaning = [f"{first} if A is better", f"{second} if B is better"]
        meaning += [f"{label} if they are equally good" for label in tie]
        asked = f"Which of the two is the better answer, A or B? {_DUTIES}"
        return f"{asked}{_OF_LAST_TURN * is_last}\n{self._how_to_say(meaning)}"

    def _ask_score(self, is_last: bool) -> str:
        names = self._level_names
        asked = f"How good is the answer, from {names[0]} (useless) to {names[-1]} (excellent)? "
        asked += _DUTIES + _OF_LAST_TURN * is_last
        if self.level_labels == names:
            return f"{asked}\n{self._how_to_say(names)}"
        meaning = [f"{a} for {b}" for a, b in zip(self.level_labels, names, strict=True)]
        return f"{asked}\n{self._how_to_say(meaning)}"

    def _how_to_say(self, meaning: Sequence[str]) -> str:
        options = ", ".join(meaning)
        if self.is_bare:
            return f"Say nothing but the label: {options}."
        return (
            "Give your reason in two or three sentences. Then end with your verdict in double "
            f"square brackets, such as [[{self.pair_labels[0]}]] or [[{self._level_names[-1]}]]: "
            f"{options}."
        )
