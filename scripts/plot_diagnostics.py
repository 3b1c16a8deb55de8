"""Draws the numbers of a run's `diagnostics:` section, as docs/diagnostics.md shows them.

Usage: python scripts/plot_diagnostics.py RUN OUT.png, from anywhere.
"""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PREFIX = "diagnostics/"
_CHOSEN, _REJECTED, _OTHER = "#0072B2", "#D55E00", "#555555"
# Title, unit, and the metrics with their label and colour.
_PANELS = (
    (
        "Drift of log-probs",
        "nats a response",
        (("drift/chosen", "chosen", _CHOSEN), ("drift/rejected", "rejected", _REJECTED)),
    ),
    (
        "Pairs of which both responses fall",
        "share of pairs",
        (
            ("predicted/both_fall", "by the pair's own part of a step", _CHOSEN),
            ("realised/both_fall", "by the whole step", _OTHER),
        ),
    ),
    (
        "Entanglement",
        "cosine, or share of pairs",
        (
            ("cosine", "cosine of the two gradients", _OTHER),
            ("chosen_condition_broken", "chosen condition broken", _CHOSEN),
            ("rejected_condition_broken", "rejected condition broken", _REJECTED),
        ),
    ),
    (
        "Ranking",
        "share of pairs",
        (
            ("ranking_accuracy", "policy", _CHOSEN),
            ("ranking_accuracy/reference", "reference", _OTHER),
        ),
    ),
)


def main(run: Path, output: Path) -> None:
    """Draw four panels over the steps at which the run measured."""
    with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    figure = Figure(figsize=(7, 7), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        _draw(axes, rows, *panel)
    figure.savefig(output, dpi=100)


def _draw(axes: Axes, rows: list[dict], title: str, unit: str, curves: tuple) -> None:
    for metric, label, color in curves:
        key = _PREFIX + metric
        points = [(row["step"], row[key]) for row in rows if key in row]
        assert points, f"{key} is in no line of metrics.jsonl"
        axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o", markersize=3)
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set(title=title, xlabel="optimiser step", ylabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
