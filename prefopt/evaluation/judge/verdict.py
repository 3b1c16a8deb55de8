"""What a judge's text says, and what the log-probs of its label say."""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.evaluation.judge.base import normalised

# A number in single brackets is a citation.
_BRACKETED = re.compile(r"\[\[\s*([^\[\]]+?)\s*\]\]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_AROUND_LABELS = " \t\r\n[]()*\"'`.:,"


def last_verdict(text: str, labels: Sequence[str]) -> int | None:
    """Which label stands last in double brackets; None if none does.

    An explanation may quote the labels before it comes to its verdict, so the last one counts.
    """
    found = [word for word in _BRACKETED.findall(text) if word in labels]
    return labels.index(found[-1]) if found else None


def last_label(text: str, labels: Sequence[str]) -> int | None:
    """Which label a reply that should be nothing but a label ends with; None if with none."""
    words = [word for word in map(_bare, text.split()) if word in labels]
    return labels.index(words[-1]) if words else None


def last_rating(text: str) -> float | None:
    """The last number in double brackets; None if there is none."""
    found = [word for word in _BRACKETED.findall(text) if _NUMBER.fullmatch(word)]
    return float(found[-1]) if found else None


def on_levels(value: float, levels: Sequence[float]) -> tuple[float, ...] | None:
    """A distribution over levels whose mean is the value: on one level or two neighbours.

    None if the value is below the lowest or above the highest.
    """
    if not levels[0] <= value <= levels[-1]:
        return None
    above = min(bisect_right(levels, value), len(levels) - 1)
    below = above - 1
    share = (value - levels[below]) / (levels[above] - levels[below])
    probs = [0.0] * len(levels)
    probs[below], probs[above] = 1 - share, share
    return tuple(probs)


@dataclass(frozen=True, slots=True)
class LabelProbs:
    """What the log-probs at one position say of the labels."""

    probs: tuple[float, ...] | None
    """One per label, summing to 1; None if no label is among the tokens."""
    mass: float
    """Probability of all labels together."""


def label_probs(top: Any, labels: Sequence[str]) -> LabelProbs:
    """Probabilities of labels from `[{"token", "logprob"}, ...]`.

    Tokens that differ only by space or brackets around a label are variants of it and are summed,
    by log-sum-exp. A label that is not among the tokens counts as 0; what is missing shows in the
    mass.

    Raises:
        KeyError, TypeError, ValueError: if `top` has another form, as it comes from a server.
    """
    logprobs: list[list[float]] = [[] for _ in labels]
    # Some servers list the sampled token twice.
    for token, logprob in {str(each["token"]): float(each["logprob"]) for each in top}.items():
        if _bare(token) in labels:
            logprobs[labels.index(_bare(token))].append(logprob)
    weights = [math.exp(_log_sum_exp(each)) for each in logprobs]
    return LabelProbs(normalised(weights), min(math.fsum(weights), 1.0))


def label_position(tokens: Sequence[str], labels: Sequence[str], *, is_bare: bool) -> int | None:
    """Index of the token that is the reply's label, the last one; None if there is none.

    A bare reply whose tokens are all no labels is read at its first token: what was drawn there is
    only one of the tokens that could have been. Otherwise the label is the one in the last double
    brackets; None also where the tokenizer splits it.
    """
    if is_bare:
        found = [index for index, token in enumerate(tokens) if _bare(token) in labels]
        return found[-1] if found else 0 if tokens else None
    matches = [m for m in _BRACKETED.finditer("".join(tokens)) if m[1] in labels]
    if not matches:
        return None
    start, end = 0, matches[-1].start(1)
    for index, token in enumerate(tokens):
        start += len(token)
        if start > end:
            return index if _bare(token) == matches[-1][1] else None
    return None


def _bare(token: str) -> str:
    return token.strip(_AROUND_LABELS)


def _log_sum_exp(values: Sequence[float]) -> float:
    highest = max(values, default=-math.inf)
    if highest == -math.inf:
        return -math.inf
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))
