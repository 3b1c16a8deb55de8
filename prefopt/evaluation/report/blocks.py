"""What a report consists of, before it is a page or Markdown: both show the same blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from prefopt.diagnostics.report_page import Html
from prefopt.evaluation.numbers import Estimate, Example
from prefopt.evaluation.report.words import Form


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A cell with a number, its interval and what it is over."""

    estimate: Estimate
    form: Form = "number"
    tone: float = 0.0
    """Colour: from -1, a loss, to 1, a win."""
    is_strong: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """The head of a row."""

    name: str
    detail: str = ""


Cell = Value | Named | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under a head; the first cell of a row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    is_folded: bool = False
    """Whether only the caption is seen until it is asked for."""
    is_dense: bool = False
    """Whether it is a matrix, with narrow cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A number drawn with its interval, on a row of a forest."""

    label: str
    estimate: Estimate
    is_hollow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """Numbers drawn one below the other on one axis; a table beside has them in digits."""

    caption: str
    rows: Sequence[tuple[str, Sequence[Mark]]]
    centre: float
    """Where there is no difference."""
    form: Form = "number"
    muted: frozenset[str] = frozenset()
    """Rows to draw pale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A drawing for the page; Markdown has the tables beside it."""

    caption: str
    drawn: Sequence[Html]
    """For narrow and for wide screens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """Paragraphs, or the points of a list."""

    lines: Sequence[str]
    is_list: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Names and what they are."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Prompts with the answers of all methods side by side."""

    examples: Sequence[Example]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Blocks with a title of their own within a section."""

    title: str
    blocks: Sequence["Block"]
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Blocks that stand side by side where the screen is wide enough."""

    blocks: Sequence["Block"]


Block = Beside | Table | Forest | Plot | Lines | Facts | Answers | Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the report; one without blocks is not shown."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
