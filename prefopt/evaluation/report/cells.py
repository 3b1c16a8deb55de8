"""Cells of tables from numbers that may be absent."""

from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.report.blocks import Block, Cell, Lines, Value
from prefopt.evaluation.report.words import DASH

_FULL_TONE = 0.3
"""Distance of a win rate from 1/2 that has the full colour."""


def win(estimate: Estimate | None, *, is_strong: bool = False) -> Cell:
    """A win rate, coloured by how far it is from 1/2."""
    if estimate is None:
        return DASH
    tone = max(-1.0, min(1.0, (estimate["value"] - 0.5) / _FULL_TONE))
    return Value(estimate=estimate, form="share", tone=tone, is_strong=is_strong)


def share(estimate: Estimate | None) -> Cell:
    """A share, in per cent."""
    return DASH if estimate is None else Value(estimate=estimate, form="share")


def number(estimate: Estimate | None, *, is_strong: bool = False) -> Cell:
    """Any other number."""
    return DASH if estimate is None else Value(estimate=estimate, is_strong=is_strong)


def line(text: str | None) -> list[Block]:
    """A paragraph, if there is something to say."""
    return [Lines(lines=[text])] if text else []
