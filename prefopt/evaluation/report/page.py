"""report.html: one file that needs nothing else, for phones and for wide screens."""

import re
from collections.abc import Sequence

from prefopt.diagnostics.report_page import Html, code, joined, page, paragraph, tag
from prefopt.diagnostics.report_page import facts as fact_list
from prefopt.evaluation.numbers import Report
from prefopt.evaluation.report import words
from prefopt.evaluation.report.blocks import (
    Answers,
    Beside,
    Block,
    Cell,
    Facts,
    Forest,
    Group,
    Lines,
    Named,
    Plot,
    Section,
    Table,
)
from prefopt.evaluation.report.examples import examples
from prefopt.evaluation.report.forest import forest
from prefopt.evaluation.report.layout import layout
from prefopt.evaluation.report.sections import facts, sections
from prefopt.evaluation.report.style import STYLE

_LONGEST_LEAD = 160
_WITHIN = re.compile(r"(?<=\bn) (?== )|(?<=[=<]) (?=\d)|(?<=\bp) (?=[=<] )|(?<=\d) (?=%)")


def html_page(report: Report) -> str:
    """The whole file; the verdict is what the report says."""
    shown = sections(report)
    anchors = [re.sub(r"\W+", "-", each.title.lower()) for each in shown]
    links = [
        tag("a", each.title, href=f"#{anchor}") for each, anchor in zip(shown, anchors, strict=True)
    ]
    body = joined(
        [
            tag("h1", report["title"]),
            _block(facts(report)),
            _verdict(report["verdict"]),
            tag("nav", *links),
            *(_section(each, anchor) for each, anchor in zip(shown, anchors, strict=True)),
        ]
    )
    return page(report["title"], body, STYLE)


def _verdict(sentences: Sequence[str]) -> Html:
    if not sentences:
        return Html("")
    points = [tag("li", *_led(_unbroken(each))) for each in sentences]
    return tag("section", tag("h2", "Verdict"), tag("ul", *points), class_="verdict")


def _unbroken(sentence: str) -> str:
    """No line ends within `n = 805`, `62.3 %` or `p < 0.001`."""
    return _WITHIN.sub("\u00a0", sentence)


def _led(sentence: str) -> list[object]:
    """What stands before the colon is what people look for."""
    lead, colon, rest = sentence.partition(": ")
    if not colon or len(lead) > _LONGEST_LEAD:
        return [sentence]
    return [tag("b", lead, ":"), " ", rest]


def _section(section: Section, anchor: str) -> Html:
    return tag("section", tag("h2", section.title, id=anchor), *map(_block, section.blocks))


def _block(block: Block) -> Html:
    match block:
        case Table():
            return _table(block)
        case Forest():
            return forest(block)
        case Plot():
            return tag("figure", tag("figcaption", block.caption), *block.drawn, class_="plot")
        case Lines():
            return _lines(block)
        case Facts():
            pairs = [(k, code(v) if k == "Command" else v) for k, v in block.pairs]
            return fact_list(pairs)
        case Answers():
            return examples(block)
        case Group():
            return _group(block)
        case Beside():
            return tag("div", *map(_block, block.blocks), class_="beside")


def _lines(block: Lines) -> Html:
    if block.is_list:
        return tag("ul", *(tag("li", each) for each in block.lines))
    return joined(paragraph(each) for each in block.lines)


def _group(group: Group) -> Html:
    content = joined(map(_block, group.blocks))
    if group.is_folded:
        return tag("details", tag("summary", tag("b", group.title)), content, class_="group")
    return joined([tag("h3", group.title), content])


def _table(block: Table) -> Html:
    plan = layout(block)
    heads = [
        tag(
            "th",
            _breakable(name),
            *([" ", tag("small", over)] if over else []),
            scope="col",
            **_kind(is_text),
        )
        for name, over, is_text in zip(block.head, plan.over, plan.is_text, strict=True)
    ]
    rows = [tag("tr", *map(_cell, row, plan.is_said, plan.is_text)) for row in block.rows]
    kind = "dense" if block.is_dense else "plain"
    drawn = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_=kind)
    scrolled = tag("div", drawn, class_="scroll", tabindex=0)
    if block.is_folded:
        return tag("details", tag("summary", plan.caption), scrolled, class_="group")
    caption = [tag("figcaption", plan.caption)] if plan.caption else []
    return tag("figure", *caption, scrolled)


def _breakable(name: str) -> Html:
    """A name that may go on in the next line after a slash or an underscore."""
    return Html(re.sub(r"(?<=\w)([/_])(?=\w)", r"\1<wbr>", joined([name])))


def _kind(is_text: bool) -> dict[str, object]:
    return {"class_": "word"} if is_text else {}


def _cell(cell: Cell, is_said: bool, is_text: bool) -> Html:
    if isinstance(cell, Named):
        detail = [" ", tag("small", cell.detail)] if cell.detail else []
        return tag("th", _breakable(cell.name), *detail, scope="row")
    if isinstance(cell, str):
        return tag("td", cell, **_kind(is_text))
    estimate, form = cell.estimate, cell.form
    value = words.value(estimate, form)
    content = [
        tag("b", value) if cell.is_strong else value,
        " ",
        tag("small", words.interval(estimate, form)),
        *([] if is_said else [" ", tag("small", words.over(estimate))]),
    ]
    if not cell.tone:
        return tag("td", *content)
    kind = "win" if cell.tone > 0 else "loss"
    return tag("td", *content, class_=kind, style=f"--a:{abs(cell.tone):.2f}")
