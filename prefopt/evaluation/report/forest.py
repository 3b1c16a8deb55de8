"""Numbers with their intervals on one axis, in HTML, so that it is as wide as the screen allows."""

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from prefopt.diagnostics.report_page import Html, tag
from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.report import words
from prefopt.evaluation.report.blocks import Forest, Mark

_ROOM = 0.04
"""Share of the axis that is left free at either end."""


def forest(block: Forest) -> Html:
    """A row per name, and below them the axis."""
    low, high = _limits(block)
    rows = [
        tag(
            "div",
            tag("span", name, class_="name"),
            _track(block, marks, low, high),
            class_="row muted" if name in block.muted else "row",
        )
        for name, marks in block.rows
    ]
    ticks = [
        tag("span", words.tick(each, block.form), style=f"left:{_percent(each, low, high)}")
        for each in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        if low <= each <= high
    ]
    axis = tag("div", tag("span", class_="name"), tag("span", *ticks, class_="ticks"), class_="row")
    return tag("figure", tag("figcaption", block.caption), *rows, axis, class_="forest")


def _limits(block: Forest) -> tuple[float, float]:
    ends = [block.centre]
    for _, marks in block.rows:
        for mark in marks:
            ends += [end for end in _ends(mark.estimate) if end is not None]
    low, high = min(ends), max(ends)
    room = _ROOM * (high - low) or 0.1
    return low - room, high + room


def _ends(estimate: Estimate) -> tuple[float | None, ...]:
    return estimate["low"], estimate["value"], estimate["high"]


def _track(block: Forest, marks: Sequence[Mark], low: float, high: float) -> Html:
    drawn = [tag("i", class_="mid", style=f"left:{_percent(block.centre, low, high)}")]
    said = []
    for mark in marks:
        kind = "hollow" if mark.is_hollow else "full"
        estimate = mark.estimate
        at = _percent(estimate["value"], low, high)
        if estimate["low"] is not None and estimate["high"] is not None:
            left = _percent(estimate["low"], low, high)
            width = f"{100 * (estimate['high'] - estimate['low']) / (high - low):.2f}%"
            drawn.append(tag("i", class_=f"arm {kind}", style=f"left:{left};width:{width}"))
        drawn.append(tag("i", class_=f"dot {kind}", style=f"left:{at}"))
        said.append(f"{mark.label} {words.whole(estimate, block.form)}")
    label, kind = "; ".join(said), "track pair" if len(marks) > 1 else "track"
    return tag(
        "span",
        *drawn,
        class_="track pair" if len(marks) > 1 else "track",
        role="img",
        aria_label=label,
        title=label,
    )


def _percent(at: float, low: float, high: float) -> str:
    return f"{100 * (at - low) / (high - low):.2f}%"
