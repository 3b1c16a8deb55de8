"""Put a report into a folder."""

import json
from pathlib import Path

from prefopt.evaluation.files import write_json, write_whole
from prefopt.evaluation.numbers import Report
from prefopt.evaluation.report.markdown import markdown
from prefopt.evaluation.report.page import html_page
from prefopt.evaluation.report.verdict import verdict

JSON_NAME, HTML_NAME, MARKDOWN_NAME = "report.json", "report.html", "report.md"


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.html and report.md; each is the old one or the new one.

    All three are made before the first is written, and the verdict is made from the numbers.

    Args:
        report: everything but the verdict, which is replaced.
        folder: where they go; it is made if need be.
    """
    whole = _encodable({**report, "verdict": verdict(report)})
    texts = {HTML_NAME: html_page(whole), MARKDOWN_NAME: markdown(whole)}
    write_json(folder / JSON_NAME, whole)
    for name, text in texts.items():
        write_whole(folder / name, text)


def _encodable(report: Report) -> Report:
    """A model may leave half a character, which UTF-8 has no bytes for: a question mark instead."""
    text = json.dumps(report, ensure_ascii=False, allow_nan=False)
    clean: Report = json.loads(text.encode("utf-8", errors="replace"))
    return clean
