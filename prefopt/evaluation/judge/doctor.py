"""Is a judge fit to judge? Twenty plain pairs, put to it in both orders."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from prefopt.evaluation.judge.asking import ask_all
from prefopt.evaluation.judge.base import Judge
from prefopt.evaluation.judge.doctor_pairs import PAIRS
from prefopt.evaluation.judge.runner import LEAST_COVERAGE
from prefopt.evaluation.types import (
    Answer,
    PairQuestion,
    Prompt,
    Question,
    Reply,
    ScoreQuestion,
    Status,
)

# Of twenty pairs, who draws lots gets 15 or more right twice in a hundred times.
_LEAST_RIGHT = 0.75
_LEAST_CONSISTENT = 0.5
_SLOT_BIAS_TO_SAY = 0.1
_SLOT_BIAS_TO_WARN = 0.25
_GOOD_LABEL_MASS = 0.9
_LEAST_LABEL_MASS = 0.1
_NUM_IDENTICAL = 5


@dataclass(kw_only=True)
class Findings:
    """What was seen; shares and probabilities are in [0, 1], and None where nothing was asked."""

    num_asked: int
    by_status: dict[Status, int]
    problem: str | None = None
    """Of the first reply that is not ok."""
    first_slot_rate: float | None = None
    """Mean probability of the answer shown first, over both orders; 0.5 without bias."""
    consistent_share: float | None = None
    """Of pairs: the same answer is preferred in both orders."""
    identical_first: float | None = None
    """Mean probability of the first of two identical answers; 0.5 without bias."""
    right_share: float | None = None
    """Of pairs: the good answer is preferred, both orders averaged; ties half."""
    scores_right_share: float | None = None
    """Of pairs: the good answer has the higher mean score; ties half."""
    label_mass: float | None = None
    """Mean probability of all labels together."""
    seen_share: float | None = None
    """Of replies with a label mass: every label had a probability."""
    lines: list[str] = field(default_factory=list)
    """What follows, in plain sentences with the way out."""
    is_usable: bool = True

    def fail(self, sentence: str) -> None:
        """Add a sentence that makes the judge unusable."""
        self.lines.append(f"Unusable: {sentence}")
        self.is_usable = False


def examine(judge: Judge) -> Findings:
    """Ask about the built-in pairs and weigh the replies.

    Raises:
        JudgeUnusable: if not even the first question can be answered.
    """
    questions = _questions(judge)
    replies: dict[int, Reply] = {}
    ask_all(judge, questions, replies.__setitem__)
    asked = [(question, replies[index]) for index, question in enumerate(questions)]
    by_status = Counter(reply.status for _, reply in asked)
    problems = [reply.problem for _, reply in asked if reply.status != "ok"]
    found = Findings(
        num_asked=len(asked), by_status=dict(by_status), problem=next(iter(problems), None)
    )
    good = [(question, reply) for question, reply in asked if reply.status == "ok"]
    _weigh_pairs(found, good)
    _weigh_scores(found, judge, good)
    _weigh_labels(found, good)
    if judge.identity.get("mode") == "auto" and found.label_mass is None and good:
        found.lines.append(
            "Note: the endpoint gives no log-probs, so verdicts are read from text. Set "
            "judge.mode: text, and judge.num_samples to 4 or more for probabilities."
        )
    _conclude(found)
    return found


def _questions(judge: Judge) -> list[Question]:
    prompts = [Prompt(turns=(request,)) for request, _, _ in PAIRS]
    found: list[Question] = []
    for prompt, (_, good, bad) in zip(prompts, PAIRS, strict=True):
        answers = _answer(prompt, good), _answer(prompt, bad)
        if "pair" in judge.kinds:
            found.append(PairQuestion(prompt=prompt, first=answers[0], second=answers[1]))
            found.append(PairQuestion(prompt=prompt, first=answers[1], second=answers[0]))
        if "score" in judge.kinds:
            found += [ScoreQuestion(prompt=prompt, answer=answer) for answer in answers]
    if "pair" in judge.kinds:
        for prompt, (_, good, _) in zip(prompts[:_NUM_IDENTICAL], PAIRS, strict=False):
            same = _answer(prompt, good)
            found.append(PairQuestion(prompt=prompt, first=same, second=same))
    return found


def _answer(prompt: Prompt, text: str) -> Answer:
    return Answer(prompt_id=prompt.prompt_id, turns=(text,))


def _first(reply: Reply) -> float:
    """Probability that the first is better, ties half."""
    return reply.probs[0] + reply.probs[2] / 2


def _weigh_pairs(found: Findings, good: Sequence[tuple[Question, Reply]]) -> None:
    wins: dict[tuple[str, str], float] = {}
    identical: list[float] = []
    for question, reply in good:
        if isinstance(question, PairQuestion):
            texts = question.first.turns[0], question.second.turns[0]
            if texts[0] == texts[1]:
                identical.append(_first(reply))
            else:
                wins[texts] = _first(reply)
    both = [
        (wins[better, worse], wins[worse, better])
        for _, better, worse in PAIRS
        if (better, worse) in wins and (worse, better) in wins
    ]
    if identical:
        found.identical_first = fmean(identical)
    if both:
        found.first_slot_rate = fmean(win for pair in both for win in pair)
        found.consistent_share = fmean(_sign(one, 0.5) == -_sign(other, 0.5) for one, other in both)
        found.right_share = fmean((1 + _sign(one, other)) / 2 for one, other in both)


def _weigh_scores(found: Findings, judge: Judge, good: Sequence[tuple[Question, Reply]]) -> None:
    means = {
        (question.prompt.turns[0], question.answer.turns[0]): sum(
            level * prob for level, prob in zip(judge.levels, reply.probs, strict=True)
        )
        for question, reply in good
        if isinstance(question, ScoreQuestion)
    }
    both = [
        (means[request, better], means[request, worse])
        for request, better, worse in PAIRS
        if (request, better) in means and (request, worse) in means
    ]
    if both:
        found.scores_right_share = fmean((1 + _sign(*pair)) / 2 for pair in both)


def _sign(one: float, other: float) -> int:
    """1 if the first is larger, -1 if the second, 0 if they are equal up to rounding."""
    return 0 if abs(one - other) < 1e-9 else 1 if one > other else -1


def _weigh_labels(found: Findings, good: Sequence[tuple[Question, Reply]]) -> None:
    with_mass = [(question, reply) for question, reply in good if reply.label_mass is not None]
    if not with_mass:
        return
    found.label_mass = fmean(reply.label_mass or 0.0 for _, reply in with_mass)
    of_pairs = [r for question, r in with_mass if isinstance(question, PairQuestion)]
    if of_pairs:
        found.seen_share = fmean(min(reply.probs[:2]) > 0 for reply in of_pairs)


def _conclude(found: Findings) -> None:
    """Sentences about what is good, what is not, and what to do."""
    say, fail = found.lines.append, found.fail
    if found.by_status.get("no_logprobs"):
        fail(
            "The endpoint gives no log-probs. Set judge.mode: text, or serve the model with vLLM, "
            "SGLang or llama.cpp."
        )
    share = found.by_status.get("ok", 0) / found.num_asked
    if share < LEAST_COVERAGE:
        fail(f"Only {100 * share:.0f}% of the questions have a judgment; such as: {found.problem}.")
    if found.label_mass is not None and found.label_mass < _LEAST_LABEL_MASS:
        fail(
            f"The labels have {100 * found.label_mass:.1f}% of the probability: the model wants to "
            "say something else. Change judge.templates or labels, or set judge.mode: text."
        )
    elif found.label_mass is not None and found.label_mass < _GOOD_LABEL_MASS:
        say(f"Note: the labels have only {100 * found.label_mass:.0f}% of the probability.")
    if found.seen_share is not None and found.seen_share < 1:
        say(
            f"Note: in {100 * (1 - found.seen_share):.0f}% of the replies a label is not among the "
            "tokens that come back, and counts as 0. Raise judge.top_logprobs if you can."
        )
    _conclude_on_order(found)
    for rate, what in (
        (found.right_share, "prefers the good answer"),
        (found.scores_right_share, "gives the good answer the higher score"),
    ):
        if rate is not None and rate < _LEAST_RIGHT:
            fail(
                f"It {what} in {100 * rate:.0f}% of plain pairs; a draw of lots does in 50%. "
                "Choose a stronger judge."
            )
    if found.is_usable:
        say("Usable.")


def _conclude_on_order(found: Findings) -> None:
    bias = abs((0.5 if found.first_slot_rate is None else found.first_slot_rate) - 0.5)
    is_consistent = found.consistent_share is None or found.consistent_share >= _LEAST_CONSISTENT
    if bias > _SLOT_BIAS_TO_WARN or not is_consistent:
        found.lines.append(
            "Warning: it goes mostly by the order of showing. Both orders are averaged, so no side "
            "gains, but few judgments say anything about the answers."
        )
    elif bias > _SLOT_BIAS_TO_SAY:
        found.lines.append("Note: it leans to one slot. Both orders are averaged, so none gains.")
