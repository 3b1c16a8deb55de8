"""What docs and README say of files, commands, recipes and error messages is there."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
import yaml

from prefopt.cli import app
from prefopt.config import Recipe
from prefopt.errors import check_section
from tests.support.pages import DOCS, FENCE, ROOT, blocks, name_of, text_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
PLAIN_URL = re.compile(r"[a-z]+:")


def links(page: Path) -> list[str]:
    return LINK.findall(INLINE.sub("", FENCE.sub("", text_of(page))))


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings: lower case, hyphens, and a number where one is
    there already."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text_of(page))):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        numbered = slug
        number = 0
        while numbered in found:
            number += 1
            numbered = f"{slug}-{number}"
        found.add(numbered)
    return found


def problem_of(link: str, page: Path) -> str | None:
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return f"{link}: no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return f"{link}: no such heading"
    return None


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=name_of(page)) for page in pages]


@pytest.mark.parametrize("page", named(PAGES))
def test_every_relative_link_leads_somewhere(page: Path):
    relative = [link for link in links(page) if not PLAIN_URL.match(link)]

    assert [problem for link in relative if (problem := problem_of(link, page))] == []


def test_every_page_is_linked_from_the_index_and_the_index_from_the_readme():
    index = DOCS / "index.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in links(index)}

    assert [page.name for page in DOCS.rglob("*.md") if page not in {index, *linked}] == []
    assert "docs/index.md" in links(ROOT / "README.md")


def commands(page: Path) -> Iterator[list[str]]:
    """The words after each `prefopt` in shell blocks, and of inline code that begins with it."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if "prefopt" in line:
                yield from after_prefopt(line)
    for code in INLINE.findall(FENCE.sub("", text_of(page))):
        if code.startswith("prefopt "):
            yield from after_prefopt(code)


def after_prefopt(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) - set(";&|"):
            command.append(word)
            continue
        # A last word is a folder, as in `cd prefopt`.
        if "prefopt" in command[:-1]:
            yield command[command.index("prefopt") + 1 :]
        command = []


@cache
def whole_command() -> Any:
    return typer.main.get_command(app)


def problem_of_command(words: list[str]) -> str | None:
    """What is wrong with a command line of prefopt: its command, or one of its long options."""
    command = whole_command()
    place = "prefopt"
    rest = list(words)
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return f"{place} has no command '{rest[0]}'"
        place = f"{place} {rest[0]}"
        command = command.commands[rest.pop(0)]
    known = {"--help", *(option for each in command.params for option in each.opts)}
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    return f"{place} has no {', '.join(sorted(given - known))}" if given - known else None


@pytest.mark.parametrize("page", named(PAGES))
def test_every_command_exists_and_has_the_options_that_it_is_given(page: Path):
    found = {problem_of_command(words) for words in commands(page)}

    assert found - {None} == set()


def test_a_command_that_does_not_exist_would_be_seen():
    assert problem_of_command(["trian", "recipe.yaml"]) == "prefopt has no command 'trian'"
    assert problem_of_command(["cache", "lst"]) == "prefopt cache has no command 'lst'"
    assert problem_of_command(["train", "r.yaml", "--now"]) == "prefopt train has no --now"
    assert list(after_prefopt("srun x && prefopt train a.yaml --resume  # on")) == [
        ["train", "a.yaml", "--resume"]
    ]


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    asked = {
        target
        for page in PAGES
        for block in blocks(page, "bash")
        for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)
    }

    assert asked <= targets


@pytest.mark.parametrize("page", named(PAGES))
def test_every_whole_recipe_is_one(page: Path):
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        if isinstance(values, dict) and {"model", "objective"} <= values.keys():
            check_section(Recipe, values, "")


def messages() -> list[str]:
    """Errors that docs/troubleshooting.md lists: code at the beginning of an item."""
    begins = re.findall(r"^- ((?:`[^`\n]+`,? ?)+)", text_of(DOCS / "troubleshooting.md"), re.M)
    return [code for begin in begins for code in INLINE.findall(begin)]


def printed() -> Iterator[str]:
    """All texts of the package, without what is filled in."""
    for path in sorted((ROOT / "prefopt").rglob("*.py")):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                constants = [part for part in node.values if isinstance(part, ast.Constant)]
                yield "".join(str(part.value) for part in constants)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_that_troubleshooting_lists_is_in_the_source():
    listed, texts = messages(), list(printed())

    assert len(listed) > 50
    assert [each for each in listed if not any(is_of(each, text) for text in texts)] == []


def is_of(message: str, text: str) -> bool:
    """Whether a text has all parts of a message in their order; `...` stands between parts."""
    start = 0
    for part in message.split("..."):
        start = text.find(part, start) + len(part)
        if start < len(part):
            return False
    return True


def test_every_paper_of_the_source_is_in_the_index_of_papers():
    named = re.compile(r"arxiv[\w./: ]*?(\d{4}\.\d{5})", re.IGNORECASE)
    page = text_of(DOCS / "papers.md")
    numbers = {
        number
        for path in (ROOT / "prefopt").rglob("*.py")
        for number in named.findall(text_of(path))
    }

    assert len(numbers) > 30
    assert {number for number in numbers if f"arxiv.org/abs/{number})" not in page} == set()
