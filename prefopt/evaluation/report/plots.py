"""Quality against KL, drawn once for narrow and once for wide screens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from prefopt.diagnostics.report_page import Html, tag
from prefopt.diagnostics.report_svg import INK, inline, settings
from prefopt.evaluation.numbers import Estimate, FrontierPoint, Report

# What matplotlib writes, and what the page calls it; told apart by colour-blind people too.
COLORS = {
    "#0072b2": "var(--c0)",
    "#d55e00": "var(--c1)",
    "#009e73": "var(--c2)",
    "#b8558f": "var(--c3)",
    "#8c6d00": "var(--c4)",
    "#3f9fd8": "var(--c5)",
    "#5a3fa0": "var(--c6)",
    "#6b6f75": "var(--c7)",
}
_DRAWN = list(COLORS)
_MARKERS = "os^DvPXp*"
"""One more than colours, so that no two of 72 methods have both in common."""
_PALE = 0.3
_LINE_HEIGHT = 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    """Of a drawing, in points."""

    name: str
    width: int
    height: int
    font: int
    most_characters: int
    """A longer name of a method is cut."""


_SIZES = (
    _Size(name="narrow", width=360, height=340, font=11, most_characters=12),
    _Size(name="wide", width=900, height=470, font=13, most_characters=28),
)


@dataclass(frozen=True, slots=True)
class _Curve:
    """The points of one method."""

    name: str
    color: str
    marker: str
    points: Sequence[FrontierPoint]

    @property
    def anchor(self) -> tuple[float, float]:
        """KL and quality of what was selected, mean over seeds: where its name points to."""
        selected = [each for each in self.points if each["is_selected"]] or self.points
        return _mean(selected)


def frontier(report: Report) -> list[Html]:
    """The drawing in each size."""
    return [_frontier(report, size) for size in _SIZES]


def _frontier(report: Report, size: _Size) -> Html:
    curves = _curves(report["frontier"])
    names = [_cut(curve.name, size.most_characters) for curve in curves]
    margin = 0.6 * size.font * max(map(len, names)) + 26
    with style.context({**settings(f"frontier {size.name}"), "font.size": size.font - 1}):
        figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
        axes = figure.add_axes(
            (
                4.0 * size.font / size.width,
                3.4 * size.font / size.height,
                1 - (margin + 4.0 * size.font) / size.width,
                1 - 5.6 * size.font / size.height,
            )
        )
        for curve in curves:
            _draw(axes, curve)
        if report["matched_kl_at"] is not None:
            axes.axvline(report["matched_kl_at"], color=INK, alpha=0.5, linewidth=1, linestyle=":")
        _dress(axes)
        over = [*_titles(axes, report, size), *_labels(axes, curves, names, size)]
        label = f"{report['quality_name']} against KL"
        drawn = inline(figure, label, COLORS, *over)
    return Html(drawn.replace("<svg ", f'<svg class="{size.name}" ', 1))


def _curves(points: Sequence[FrontierPoint]) -> list[_Curve]:
    names = list(dict.fromkeys(each["method"] for each in points))
    return [
        _Curve(
            name,
            _DRAWN[i % len(_DRAWN)],
            _MARKERS[i % len(_MARKERS)],
            [each for each in points if each["method"] == name],
        )
        for i, name in enumerate(names)
    ]


def _draw(axes: Axes, curve: _Curve) -> None:
    for each in curve.points:
        kl, quality, is_selected = each["kl"], each["quality"], each["is_selected"]
        axes.errorbar(
            kl["value"],
            quality["value"],
            xerr=_arms(kl),
            yerr=_arms(quality),
            color=curve.color,
            marker=curve.marker,
            markersize=7 if is_selected else 5,
            markeredgewidth=0,
            elinewidth=1.1 if is_selected else 0.8,
            alpha=0.95 if is_selected else _PALE,
            zorder=3 if is_selected else 2,
        )
    of_setting: dict[str, list[FrontierPoint]] = {}
    for each in curve.points:
        of_setting.setdefault(repr(each["settings"]), []).append(each)
    if len(of_setting) > 1:
        means = sorted(map(_mean, of_setting.values()))
        axes.plot(*np.array(means).T, color=curve.color, alpha=_PALE, linewidth=1.2, zorder=1)


def _mean(points: Sequence[FrontierPoint]) -> tuple[float, float]:
    values = [(each["kl"]["value"], each["quality"]["value"]) for each in points]
    kl, quality = np.mean(values, axis=0).tolist()
    return kl, quality


def _arms(estimate: Estimate) -> list[list[float]] | None:
    low, high, value = estimate["low"], estimate["high"], estimate["value"]
    if low is None or high is None:
        return None
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _dress(axes: Axes) -> None:
    axes.margins(0.04)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.tick_params(length=0, pad=6)
    axes.grid(visible=True, alpha=0.12, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_alpha(0.4)


def _titles(axes: Axes, report: Report, size: _Size) -> list[Html]:
    """What the axes are; names that users chose are not for matplotlib, which reads formulas."""
    box = axes.get_position()
    bottom = size.height - 0.5 * size.font
    right = box.x1 * size.width
    said = [
        tag("text", report["quality_name"], x=2, y=size.font + 2, font_size=size.font),
        tag(
            "text",
            "KL from the start, nats",
            x=round(right, 1),
            y=round(bottom, 1),
            text_anchor="end",
            font_size=size.font,
        ),
    ]
    if report["matched_kl_at"] is not None:
        x, _ = _place(axes, size, report["matched_kl_at"], 0.0)
        top = (1 - box.y1) * size.height - 3
        at = f"matched at {report['matched_kl_at']:.3g}"
        small = size.font - 2
        said.append(
            tag("text", at, x=round(x, 1), y=round(top, 1), text_anchor="middle", font_size=small)
        )
    return said


def _labels(axes: Axes, curves: Sequence[_Curve], names: Sequence[str], size: _Size) -> list[Html]:
    """Names of methods in a column at the right, each with a line to its points."""
    box = axes.get_position()
    column = box.x1 * size.width + 18
    anchors = [_place(axes, size, *curve.anchor) for curve in curves]
    low, high = (1 - box.y1) * size.height, (1 - box.y0) * size.height
    heights = _spread([y for _, y in anchors], low, high, _LINE_HEIGHT * size.font)
    drawn = []
    for curve, name, (x, y), height in zip(curves, names, anchors, heights, strict=True):
        path = f"M{x:.1f} {y:.1f}L{column - 4:.1f} {height:.1f}"
        color = COLORS[curve.color]
        drawn.append(tag("path", d=path, stroke=color, stroke_dasharray="1 3", fill="none"))
        text = {"x": round(column, 1), "y": round(height + 0.35 * size.font, 1), "fill": color}
        whole = tag("title", curve.name)
        drawn.append(tag("text", whole, name, font_size=size.font, font_weight=600, **text))
    return drawn


def _spread(wanted: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Heights near the wanted ones and in their order, at least a gap apart where there is room."""
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    steps = gap * np.arange(len(wanted))
    # Without the steps, heights need only not fall: the nearest such ones, then kept within.
    level = np.array(wanted)[order] - steps
    level = (np.maximum.accumulate(level) + np.minimum.accumulate(level[::-1])[::-1]) / 2
    placed = np.clip(level, low, high - steps[-1]) + steps
    heights = np.empty(len(wanted))
    heights[order] = placed
    return [float(each) for each in heights]


def _place(axes: Axes, size: _Size, kl: float, quality: float) -> tuple[float, float]:
    """Points from the top left of the drawing."""
    axes.get_xlim(), axes.get_ylim()
    x, y = axes.transData.transform((kl, quality))
    return float(x), float(size.height - y)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
