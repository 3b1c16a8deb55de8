"""How a table is laid out: what its numbers are over is said once wherever it is the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.evaluation.report.blocks import Cell, Table, Value
from prefopt.evaluation.report.words import over


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What stands above the cells of a table."""

    caption: str
    over: Sequence[str]
    """Per column, what all its numbers are over; empty where they differ or the caption says it."""
    is_said: Sequence[bool]
    """Per column, whether its cells need not say it."""
    is_text: Sequence[bool]
    """Per column, whether it holds words rather than numbers."""


def layout(table: Table) -> Layout:
    """The caption and the heads."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.head))]
    whole = _common([cell for column in columns for cell in column])
    overs = ["" if whole else _common(column) for column in columns]
    caption = table.caption
    if whole:
        ending = "" if not caption or caption.endswith(".") else "."
        caption = f"{caption}{ending} {whole} in every cell.".strip()
    return Layout(
        caption=caption,
        over=overs,
        is_said=[bool(whole or each) for each in overs],
        is_text=[_is_text(column) for column in columns],
    )


def _common(cells: Sequence[Cell]) -> str:
    counts = {over(cell.estimate) for cell in cells if isinstance(cell, Value)}
    return counts.pop() if len(counts) == 1 else ""


def _is_text(cells: Sequence[Cell]) -> bool:
    return all(isinstance(cell, str) for cell in cells) and any(
        letter.isalpha() for cell in cells if isinstance(cell, str) for letter in cell
    )
