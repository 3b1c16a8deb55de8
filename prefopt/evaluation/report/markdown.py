"""report.md: the tables of the page, to be read on a forge or as they are."""

import html
import re
from collections.abc import Iterator, Sequence

from prefopt.diagnostics.report_page import number, printable
from prefopt.evaluation.numbers import Example, Report
from prefopt.evaluation.report import words
from prefopt.evaluation.report.blocks import (
    Answers,
    Beside,
    Block,
    Cell,
    Facts,
    Group,
    Lines,
    Named,
    Table,
    Value,
)
from prefopt.evaluation.report.layout import layout
from prefopt.evaluation.report.sections import facts, sections

_IS_MARKUP = re.compile(r"[\\`*|~$#]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
_IS_HTML = re.compile(r"<(?=[a-zA-Z/!?])|&(?=#|\w+;)|^>")
_STARTS_A_LIST = re.compile(r"^(?:\d+(?=[.)] )|(?=[-+] ))")


def markdown(report: Report) -> str:
    """The whole file; the verdict is what the report says."""
    parts = [f"# {_text(report['title'])}", *_facts(facts(report))]
    if report["verdict"]:
        parts += ["## Verdict", _bullets(report["verdict"])]
    for section in sections(report):
        parts.append(f"## {_text(section.title)}")
        for block in section.blocks:
            parts += _block(block, level=3)
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, level: int) -> Iterator[str]:
    match block:
        case Table():
            yield from _table(block)
        case Lines():
            yield _bullets(block.lines) if block.is_list else "\n\n".join(map(_text, block.lines))
        case Facts():
            yield from _facts(block)
        case Answers():
            for example in block.examples:
                yield from _example(example, level)
        case Beside():
            for each in block.blocks:
                yield from _block(each, level)
        case Group():
            yield f"{'#' * level} {_text(block.title)}"
            for each in block.blocks:
                yield from _block(each, level + 1)
        case _:
            return


def _facts(block: Facts) -> Iterator[str]:
    yield "\n".join(f"- {_text(name)}: {_text(value)}" for name, value in block.pairs)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_text(each)}" for each in lines)


def _table(block: Table) -> Iterator[str]:
    plan = layout(block)
    caption = _text(plan.caption)
    heads = [
        f"{_text(name)} ({over})" if over else _text(name)
        for name, over in zip(block.head, plan.over, strict=True)
    ]
    ends = [" --- " if is_text else " ---: " for is_text in plan.is_text]
    ends[0] = " --- "
    lines = [_row(heads), f"|{'|'.join(ends)}|"]
    lines += [_row(list(map(_cell, row, plan.is_said))) for row in block.rows]
    table = "\n".join(lines)
    if block.is_folded:
        yield f"<details><summary>{caption}</summary>\n\n{table}\n\n</details>"
        return
    if caption:
        yield caption
    yield table


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell, is_said: bool) -> str:
    if isinstance(cell, Named):
        return _text(cell.name) + (f" ({_text(cell.detail)})" if cell.detail else "")
    if not isinstance(cell, Value):
        return _text(cell)
    value = words.value(cell.estimate, cell.form)
    shown = f"**{value}**" if cell.is_strong else value
    over = "" if is_said else f", {words.over(cell.estimate)}"
    return f"{shown} {words.interval(cell.estimate, cell.form)}{over}"


def _example(example: Example, level: int) -> Iterator[str]:
    category = f" ({_text(example['category'])})" if example["category"] else ""
    yield f"{'#' * level} Prompt {_text(example['prompt_id'])}{category}"
    for i, prompt in enumerate(example["turns"]):
        if len(example["turns"]) > 1:
            yield f"Turn {i + 1}:"
        yield _verbatim(prompt)
        for answer in example["answers"]:
            if i >= len(answer["turns"]):
                continue
            score = answer["score"]
            said = f" ({number(score)})" if score is not None and not i else ""
            yield f"**{_text(answer['method'])}**{said}:"
            yield _verbatim(answer["turns"][i])


def _verbatim(text: str) -> str:
    """Between fences that are longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def _text(text: str) -> str:
    """One line that a forge shows as it is."""
    line = _IS_MARKUP.sub(r"\\\g<0>", " ".join(printable(text).split()))
    line = _IS_HTML.sub(lambda found: html.escape(found[0]), line)
    return _STARTS_A_LIST.sub(r"\g<0>\\", line)
