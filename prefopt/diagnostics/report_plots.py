"""The drawn sections of the report: SVG in the page, in its colours, light or dark."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from prefopt.diagnostics.report_page import (
    Html,
    Number,
    absent,
    joined,
    meter,
    number,
    paragraph,
    percent,
    strength,
    table,
    tag,
)
from prefopt.diagnostics.report_svg import INK, inline, settings

_Floats = NDArray[np.float64]

# What matplotlib writes, and what the page calls it.
_COLORS = {
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermilion)",
    "#009e73": "var(--green)",
}
_CURVE_COLORS = list(_COLORS)
# Title, limits, and by its label what is drawn.
_TRAINING: tuple[tuple[str, tuple[float, float] | None, dict[str, str]], ...] = (
    ("Cosine of chosen and rejected", (-1.05, 1.05), {"cosine": "cosine"}),
    (
        "Share of pairs",
        (-0.03, 1.03),
        {
            "chosen broken": "chosen_condition_broken",
            "both fall": "predicted/both_fall",
            "rejected broken": "rejected_condition_broken",
        },
    ),
    ("Drift of log-probs, nats", None, {"chosen": "drift/chosen", "rejected": "drift/rejected"}),
)

_INCHES = (4.2, 2.9)
_POINTS_TO_MARK = 40
"""Up to this many points, each gets a marker: a line of one point would be invisible."""

_RED_RGB, _BLUE_RGB = (0.84, 0.27, 0.25), (0.15, 0.48, 0.81)
_TOKENS_TO_NAME = 160
"""A longer response has narrow cells without labels."""
_NAMED_PIXELS, _BARE_PIXELS = 14, 4
_LABEL_CHARACTERS = 12
_LABEL_PIXELS = 7 * _LABEL_CHARACTERS + 6
_VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\r": "⏎", "\t": "→"})


@dataclass(frozen=True, slots=True)
class _Curve:
    """Points of one colour; a point without a number is left out."""

    label: str
    color: str
    points: Sequence[tuple[int | float, Number]]


def part_table(parts: Sequence[dict[str, Any]]) -> Html:
    """What each part of the model adds to the inner product of chosen and rejected."""
    if not parts:
        return absent("parameters were not told apart by part of the model.")
    most = max(abs(each["share"] or 0.0) for each in parts)
    rows = [
        (
            each["part"],
            joined([meter(each["share"], most), f" {percent(each['share'])}"]),
            each["inner_product"],
            each["cosine"],
        )
        for each in parts
    ]
    return table(("part of the model", "share", "inner product", "cosine"), rows)


def depth_plots(depths: Sequence[dict[str, Any]]) -> Html:
    """Cosine and inner product of chosen and rejected, layer by layer."""
    if not depths:
        return absent("no parameter belongs to one of several layers.")
    panels = []
    for name, key, limits in (
        ("Cosine by depth", "cosine", (-1.05, 1.05)),
        ("Inner product by depth", "inner_product", None),
    ):
        curve = _Curve(name, _CURVE_COLORS[0], [(each["depth"], each[key]) for each in depths])
        panels.append(_line_plot(name, [curve], x_label="layer", limits=limits))
    return tag("div", *panels, class_="panels")


def training_plots(rows: Sequence[dict[str, Any]]) -> Html:
    """What was logged while the run trained."""
    if not rows:
        return absent("the run logged no diagnostics while it trained.")
    panels = [
        _line_plot(title, curves, x_label="optimiser step", limits=limits)
        for title, limits, names in _TRAINING
        if (curves := list(_curves(rows, names)))
    ]
    said = f"Logged at n = {len(rows):,} steps, from {rows[0]['step']:,} to {rows[-1]['step']:,}."
    return joined([paragraph(said), tag("div", *panels, class_="panels")])


def gram_map(group: dict[str, Any]) -> Html:
    """A cell has the inner product, and the cosine as its colour and below it."""
    rows = [
        [
            i,
            *(
                tag("td", number(product), tag("small", number(cosine)), **strength(cosine, 1.0))
                for product, cosine in zip(*cells, strict=True)
            ),
        ]
        for i, cells in enumerate(zip(group["gram"], group["cosines"], strict=True), start=1)
    ]
    caption = tag("figcaption", "Gram matrix: inner products, with cosines below them")
    return tag("figure", caption, table(["response", *range(1, len(rows) + 1)], rows))


def token_maps(maps: Sequence[dict[str, Any]]) -> Html:
    """Which tokens of a chosen response are entangled with which of a rejected one."""
    if not maps:
        return absent("no pair was looked at token by token.")
    return joined(map(_token_map, maps))


def _curves(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> Iterator[_Curve]:
    """Those that some row has a number for."""
    for (label, key), color in zip(names.items(), _CURVE_COLORS, strict=False):
        points = [(row["step"], row.get(f"diagnostics/{key}")) for row in rows]
        if any(value is not None for _, value in points):
            yield _Curve(label, color, points)


def _line_plot(
    title: str,
    curves: Sequence[_Curve],
    *,
    x_label: str,
    limits: tuple[float, float] | None = None,
) -> Html:
    """A panel of curves over whole numbers."""
    with style.context(settings(title)):
        figure = Figure(figsize=_INCHES, layout="constrained")
        _draw(figure.subplots(), curves, limits)
        figure.supxlabel(x_label, fontsize=10)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return tag("figure", tag("figcaption", tag("b", title)), inline(figure, title, _COLORS))


def _draw(axes: Axes, curves: Sequence[_Curve], limits: tuple[float, float] | None) -> None:
    for curve in curves:
        points = np.array(curve.points, dtype=np.float64)
        points = points[np.isfinite(points).all(axis=1)]
        marker = "o" if len(points) <= _POINTS_TO_MARK else ""
        axes.plot(*points.T, color=curve.color, label=curve.label, marker=marker, markersize=3.5)
    axes.axhline(0, color=INK, alpha=0.5, linewidth=0.8, linestyle=":", zorder=0)
    if limits is not None:
        axes.set_ylim(*limits)
    # One step alone would get an axis of fractions of a step.
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim(low - 1, high + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(visible=True, alpha=0.12, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _token_map(pair: dict[str, Any]) -> Html:
    chosen, rejected = pair["chosen"], pair["rejected"]
    products = _cells(pair["products"], chosen, rejected)
    of_chosen, of_rejected = products.sum(axis=1), products.sum(axis=0)
    most = max(np.abs(sums).max(initial=0.0) for sums in (of_chosen, of_rejected))
    size = f"n = {len(chosen)} by {len(rejected)} tokens, inner product {number(products.sum())}"
    return tag(
        "article",
        tag("h3", pair["id"], tag("small", " · ", size)),
        tag("h4", "Chosen"),
        _spans(chosen, of_chosen, most),
        tag("h4", "Rejected"),
        _spans(rejected, of_rejected, most),
        tag(
            "div",
            _heat_map("Inner products", chosen, rejected, products),
            _heat_map("Cosines", chosen, rejected, _cells(pair["cosines"], chosen, rejected)),
            class_="sides",
        ),
    )


def _cells(values: Any, chosen: Sequence[str], rejected: Sequence[str]) -> _Floats:
    """A missing number is 0, which has no colour."""
    cells = np.array(values, dtype=np.float64).reshape(len(chosen), len(rejected))
    return np.nan_to_num(cells)


def _spans(tokens: Sequence[str], sums: _Floats, most: float) -> Html:
    spans = [
        # A new line alone would have no colour to see.
        tag("span", token.replace("\n", "⏎\n"), title=number(value), **strength(value, most))
        for token, value in zip(tokens, sums.tolist(), strict=True)
    ]
    return tag("div", *spans, class_="tokens")


def _heat_map(name: str, rows: Sequence[str], columns: Sequence[str], cells: _Floats) -> Html:
    """A token for each row and column; 0 is the page's own colour."""
    if cells.size == 0:
        return absent("a response has no tokens.")
    are_named = max(cells.shape) <= _TOKENS_TO_NAME
    pitch, margin = (_NAMED_PIXELS, _LABEL_PIXELS) if are_named else (_BARE_PIXELS, 0)
    width, height, most = pitch * len(columns), pitch * len(rows), np.abs(cells).max()
    image = Html(
        f'<image class="cells" x="{margin}" y="{margin}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{_png(cells, most)}"/>'
    )
    names = _names(rows, columns) if are_named else []
    size = {"width": margin + width, "height": margin + height}
    drawn = tag("svg", image, *names, class_="labels", role="img", aria_label=name, **size)
    caption = f"{name}: chosen down, rejected across; full colour is {number(most)}"
    return tag("figure", tag("figcaption", caption), tag("div", drawn, class_="scroll"))


def _names(rows: Sequence[str], columns: Sequence[str]) -> Sequence[Html]:
    """Tokens before the rows and, upright, over the columns."""
    edge = _LABEL_PIXELS - 4
    baselines = [edge + 15 + _NAMED_PIXELS * i for i in range(max(len(rows), len(columns)))]
    return [
        tag("text", _short(token), x=edge, y=at, text_anchor="end")
        for token, at in zip(rows, baselines, strict=False)
    ] + [
        tag("text", _short(token), transform=f"translate({at} {edge}) rotate(-90)")
        for token, at in zip(columns, baselines, strict=False)
    ]


def _short(token: str) -> str:
    shown = token.translate(_VISIBLE)
    return shown if len(shown) <= _LABEL_CHARACTERS else shown[: _LABEL_CHARACTERS - 1] + "…"


def _png(cells: _Floats, most: float) -> str:
    """One pixel per cell, transparent at 0, so that the page shows through; in base64."""
    pixels = np.empty((*cells.shape, 4))
    pixels[..., :3] = np.where(cells[..., None] < 0, _BLUE_RGB, _RED_RGB)
    pixels[..., 3] = np.sqrt(np.abs(cells) / (most or 1.0))
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return base64.b64encode(file.getvalue()).decode()
