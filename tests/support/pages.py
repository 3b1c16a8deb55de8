"""The pages of README and docs/, and the code on them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced code of a language, in order."""
    return (body for found, body in FENCE.findall(text_of(page)) if found == language)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
