"""The curves of a run, drawn from its metrics.jsonl."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from prefopt.errors import UserError

Floats = NDArray[np.float64]

# Okabe and Ito's palette, which people with colour-blindness tell apart.
_BLUE, _VERMILION, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"

_POINTS_TO_SMOOTH = 40
"""From this many points on, a running mean is drawn over the raw values."""
_POINTS_TO_MARK = 25
"""Up to this many points, each gets a marker: a line of one point would be invisible."""
_MAX_COLUMNS = 3
_PANEL_INCHES = (4.6, 3.3)
_EVALUATION_STYLE: dict[str, Any] = {
    "linewidth": 1.0,
    "linestyle": "--",
    "marker": "D",
    "markersize": 5,
    "markerfacecolor": "white",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Curve:
    key: str
    label: str
    color: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panel:
    title: str
    unit: str
    curves: tuple[_Curve, ...]
    limits: tuple[float, float] | None = None
    level: float | None = None
    """Where a thin line marks "no better than chance" or "no change"."""


_PANELS = (
    _Panel(title="Loss", unit="loss", curves=(_Curve(key="loss", label="training", color=_BLUE),)),
    _Panel(
        title="Implicit rewards",
        unit="reward",
        curves=(
            _Curve(key="rewards/chosen", label="chosen", color=_BLUE),
            _Curve(key="rewards/rejected", label="rejected", color=_VERMILION),
            _Curve(key="rewards/margins", label="margin", color=_GREEN),
            _Curve(key="rewards/mean", label="K = 1", color=_PURPLE),
        ),
        level=0.0,
    ),
    _Panel(
        title="Ranking accuracy",
        unit="share of preferred pairs",
        curves=(_Curve(key="rewards/accuracies", label="training", color=_PURPLE),),
        limits=(-0.03, 1.03),
        level=0.5,
    ),
    _Panel(
        title="Log-probs of the responses",
        unit="nats per response",
        curves=(
            _Curve(key="logps/chosen", label="chosen", color=_BLUE),
            _Curve(key="logps/rejected", label="rejected", color=_VERMILION),
            _Curve(key="logps/mean", label="K = 1", color=_PURPLE),
        ),
    ),
    _Panel(
        title="Gradient norm, before clipping",
        unit="L2 norm",
        curves=(_Curve(key="grad_norm", label="training", color=_GREY),),
    ),
    _Panel(
        title="Learning rate",
        unit="learning rate",
        curves=(_Curve(key="learning_rate", label="training", color=_GREY),),
    ),
)


def plot_curves(metrics_path: Path, output: Path) -> None:
    """Draw what metrics.jsonl holds, one panel per kind of metric that it has.

    Lines are training values, pale with their running mean over them where there are many; diamonds
    are values on the evaluation data (keys with the prefix `eval_`).

    Raises:
        UserError: if the file is missing or broken, or holds no metric that can be drawn.
    """
    rows = list(_read(metrics_path))
    panels = [panel for panel in _PANELS if any(_has(rows, curve) for curve in panel.curves)]
    if not panels:
        raise UserError(
            f"{metrics_path}: no metrics to draw. Train for at least training.logging_steps steps."
        )
    num_rows = math.ceil(len(panels) / _MAX_COLUMNS)
    columns = math.ceil(len(panels) / num_rows)
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(width * columns, height * num_rows + 0.4),
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
    )
    figure.suptitle(metrics_path.absolute().parent.name, fontsize=14, fontweight="bold")
    grid = figure.subplots(num_rows, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, rows)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(output, dpi=120, format="png")


def _read(metrics_path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl that say of which step they are."""
    try:
        text = metrics_path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{metrics_path}: cannot read the metrics, {error.strerror}.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{metrics_path}:{number}: not a line of JSON. Remove it if a crash cut it off."
            ) from error
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            yield row


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Floats, Floats]:
    """Steps and values of a metric, from the rows that have a finite one."""
    found = [
        (row["step"], row[key])
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    points = np.array(found, dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _has(rows: Sequence[Mapping[str, Any]], curve: _Curve) -> bool:
    return any(len(_points(rows, key)[0]) > 0 for key in (curve.key, f"eval_{curve.key}"))


def _draw(axes: Axes, panel: _Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", pad=22)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(panel.unit)
    if panel.level is not None:
        axes.axhline(panel.level, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
    for curve in panel.curves:
        _draw_training(axes, curve, *_points(rows, curve.key))
        _draw_evaluation(axes, curve, *_points(rows, f"eval_{curve.key}"))
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    # One step alone would get an axis of fractions of a step.
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim(low - 1, high + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Between title and curves, where it hides nothing.
    axes.legend(
        handles=list(_legend_handles(panel, rows)),
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=5,
        frameon=False,
        fontsize=9,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0,
    )


def _draw_training(axes: Axes, curve: _Curve, steps: Floats, values: Floats) -> None:
    if len(steps) == 0:
        return
    marker = "o" if len(steps) <= _POINTS_TO_MARK else ""
    if len(steps) >= _POINTS_TO_SMOOTH:
        axes.plot(steps, values, color=curve.color, linewidth=0.8, alpha=0.3)
        values = _running_mean(values)
    axes.plot(steps, values, color=curve.color, linewidth=1.8, marker=marker, markersize=3.5)


def _draw_evaluation(axes: Axes, curve: _Curve, steps: Floats, values: Floats) -> None:
    if len(steps) > 0:
        axes.plot(steps, values, color=curve.color, **_EVALUATION_STYLE)


def _legend_handles(panel: _Panel, rows: Sequence[Mapping[str, Any]]) -> Iterator[Line2D]:
    """One handle per colour, and one for evaluation in any colour."""
    for curve in panel.curves:
        is_trained = len(_points(rows, curve.key)[0]) > 0
        if is_trained or (len(panel.curves) > 1 and _has(rows, curve)):
            yield Line2D([], [], color=curve.color, linewidth=1.8, label=curve.label)
    if any(len(_points(rows, f"eval_{curve.key}")[0]) > 0 for curve in panel.curves):
        yield Line2D([], [], color=_GREY, label="evaluation", **_EVALUATION_STYLE)


def _running_mean(values: Floats) -> Floats:
    """Means over a centred window of a twentieth of the points, narrower towards the ends."""
    half = max(len(values) // 40, 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.arange(len(values))
    reach = np.minimum(half, np.minimum(centres, len(values) - 1 - centres))
    means: Floats = (sums[centres + reach + 1] - sums[centres - reach]) / (2 * reach + 1)
    return means
