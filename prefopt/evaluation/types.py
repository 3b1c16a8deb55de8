"""What crosses borders in evaluation: prompts, answers, questions to a judge and its replies.

A *system* is what answers: a checkpoint, an adapter, an endpoint, or a file of answers. The unit of
all statistics is the prompt: turns, samples, orders and judges of one prompt belong together.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Kind = Literal["pair", "score"]
Status = Literal["ok", "parse_error", "refusal", "api_error", "no_logprobs"]
"""What came of asking a judge. All but `ok` are missing judgments, and none of them is a tie."""


class Message(TypedDict):
    """One message of a dialogue."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What systems answer."""

    turns: tuple[str, ...]
    """What the user says, one entry per turn, at least one."""
    context: tuple[Message, ...] = ()
    """Messages before the first turn, such as a system prompt or an earlier dialogue."""
    category: str | None = None
    """Such as math; tables, temperatures and references go by it."""
    reference: tuple[str, ...] | None = None
    """A right answer per turn, for judges that are shown one."""
    source_id: str | None = None
    """Its name in the file that it comes from, such as a question_id of MT-Bench."""
    dataset: str | None = None
    """Which part of a suite it belongs to, as AlpacaEval's files say."""

    @property
    def prompt_id(self) -> str:
        """By content: equal context and turns have the same one."""
        text = json.dumps([list(self.context), list(self.turns)], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one system said to one prompt."""

    prompt_id: str
    turns: tuple[str, ...]
    """One text per turn of the prompt; each later one was given after the earlier ones."""
    sample: int = 0
    """Which of several draws, from 0."""
    num_tokens: tuple[int, ...] = ()
    """Generated tokens per turn, end-of-sequence included; empty where unknown."""
    finish_reasons: tuple[str, ...] = ()
    """Per turn: `stop`, or `length` where the answer was cut; empty where unknown."""

    @property
    def num_characters(self) -> int:
        """Length of all turns."""
        return sum(map(len, self.turns))


@dataclass(frozen=True, kw_only=True, slots=True)
class PairQuestion:
    """Which of two answers is better? The order is that in which they are shown."""

    prompt: Prompt
    first: Answer
    second: Answer
    turn: int = 1
    """Which turn is judged, from 1; earlier ones are shown with it."""

    @property
    def kind(self) -> Kind:
        """What is asked."""
        return "pair"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreQuestion:
    """How good is an answer?"""

    prompt: Prompt
    answer: Answer
    turn: int = 1
    """Which turn is judged, from 1; earlier ones are shown with it."""

    @property
    def kind(self) -> Kind:
        """What is asked."""
        return "score"


Question = PairQuestion | ScoreQuestion


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a judge says to one question, asked once."""

    status: Status
    probs: tuple[float, ...] = ()
    """If ok, sums to 1. Of a pair: first better, second better, tie (0 where a judge knows none).
    Of a score: one per level of the judge, in its order."""
    label_mass: float | None = None
    """Probability that the judge gave to all labels together, before they were made to sum to 1;
    None where a backend does not tell."""
    raw: str = ""
    """What it said, as text."""
    problem: str | None = None
    """If not ok, why, in one line that holds no key."""
    num_attempts: int = 1
    usage: dict[str, int] = field(default_factory=dict)
    """Tokens, as the backend counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment:
    """One line of a file of judgments: a question, whose answers it was about, and the reply."""

    key: str
    """Hash of the judge and of exactly what it was asked: the same question is asked once."""
    prompt_id: str
    turn: int
    sample: int
    kind: Kind
    system: str
    """Whose answer: of a pair the one that is shown first."""
    opponent: str | None
    """Of a pair the one that is shown second; None for a score."""
    levels: tuple[float, ...]
    """Of a score, what the probabilities are of; empty for a pair."""
    judge: str
    """Name of the judge; the header of the file has its identity."""
    reply: Reply
    asked_at: str
    """Time in UTC, ISO 8601."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What an imported file says beside."""

    @property
    def is_ok(self) -> bool:
        """Whether there is something to count."""
        return self.reply.status == "ok"

    @property
    def win(self) -> float:
        """Of an ok pair: probability that the one shown first is better, ties counted half."""
        first, _, tie = self.reply.probs
        return first + tie / 2
