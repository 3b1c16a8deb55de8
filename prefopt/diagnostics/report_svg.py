"""Figures of matplotlib as elements of a page, in its colours, light or dark."""

import io
import re
from collections.abc import Mapping

from matplotlib.figure import Figure

from prefopt.diagnostics.report_page import Html, tag

INK = "#010203"
"""What to draw with where the page's own text colour is wanted."""
_INKED = (
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
)


def settings(name: str) -> dict[str, str]:
    """Settings of matplotlib to draw under.

    Text stays text, and names inside are the same each time but other than those of other plots.

    Args:
        name: of the plot, one of a kind in its page.
    """
    return {"svg.fonttype": "none", "svg.hashsalt": name, **dict.fromkeys(_INKED, INK)}


def inline(figure: Figure, label: str, colors: Mapping[str, str], *over: Html) -> Html:
    """The figure as an element of the page.

    Args:
        figure: drawn under `settings`.
        label: what those are told who cannot see it.
        colors: by a colour that matplotlib was given, what the page calls it.
        over: elements to lay over it, in points from the top left.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for written, named in {INK: "currentColor", **colors}.items():
        drawn = drawn.replace(written, named)
    # Most names are the same in every figure, while an id must be one of a kind in a page.
    used = set(re.findall(r"#([\w-]+)", drawn))
    drawn = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", drawn)
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn)
    opening = tag("svg", role="img", aria_label=label).removesuffix("></svg>")
    before, end, after = drawn.rpartition("</svg>")
    return Html(f"{before}{''.join(over)}{end}{after}".replace("<svg", opening, 1))
