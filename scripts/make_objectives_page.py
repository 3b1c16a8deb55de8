"""Writes docs/objectives.md from the registry, the recipes and the golden files.

Usage: python scripts/make_objectives_page.py, from the project's root. A test checks that the page
is what this writes.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from prefopt.commands.objectives import WHAT_NEEDS_MEAN, Description, describe, spoken_traits
from prefopt.objectives import registered

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "objectives.md"

_HEAD = """# Objectives

Written by `make docs` from the objectives themselves; `prefopt objectives NAME` prints the same of
one. Measured on the embedded task: [measured-objectives.md](measured-objectives.md). A new one:
[adding-an-objective.md](adding-an-objective.md).

Letters: h = log(pi / ref) of a response's summed log-probs, w preferred to l, r implicit reward,
s score, K responses, lbar mean log-prob per token. Losses are per group and averaged over the
groups that count. Pairwise ones take lists too.
"""
_READS = {
    "preferred_pairs": "preferred pairs",
    "graded": "graded scores",
    "labels": "labels 0 and 1",
    "responses": "responses",
    None: "by parameters",
}
_REFERENCE = {True: "yes", False: "no", None: "by parameters"}


def page() -> str:
    """The whole page."""
    descriptions = [describe(cls) for cls in registered().values()]
    lines = [_HEAD, "| name | what it does | reads | reference |", "|---|---|---|---|"]
    for each in descriptions:
        reads, reference = each.traits["needs"], each.traits["needs_reference"]
        lines.append(
            f"| [`{each.name}`](#{each.name}) | {_cell(each.summary)} | {_READS[reads]} | "
            f"{_REFERENCE[reference]} |"
        )
    lines.append("")
    for each in descriptions:
        lines += _section(each)
    return "\n".join(lines)


def _section(description: Description) -> Iterator[str]:
    name, traits = description.name, description.traits
    yield from (f"## {name}", "", description.summary, "")
    yield from ("```", *_wrapped_formula(description.formula), "```", "")
    paper = re.sub(r"\b(arxiv\.org/abs/[\d.]+\d)", r"[\1](https://\1)", description.paper)
    needs = traits["needs"]
    yield f"- **Paper:** {paper}"
    yield f"- **Data:** {WHAT_NEEDS_MEAN[needs] if needs else 'what its parameters ask for'}"
    yield f"- **Reference:** {_REFERENCE[traits['needs_reference']]}"
    others = spoken_traits(traits)
    if others:
        yield f"- **Also:** {', '.join(others)}"
    recipes = sorted((ROOT / "recipes" / name).glob("*.yaml"))
    links = [f"[{path.stem}](../recipes/{name}/{path.name})" for path in recipes]
    yield f"- **Recipes:** {', '.join(links)}"
    golden = _golden_files(name)
    links = [f"[{path.name}](../tests/golden/{path.name})" for path in golden]
    yield f"- **Checked against the authors' code:** {', '.join(links) or 'no recorded values'}"
    yield ""
    yield from _notes(name)
    if description.parameters:
        yield from ("| parameter | default | range | meaning |", "|---|---|---|---|")
        for each in description.parameters:
            default = "required" if each.required else json.dumps(each.default).strip('"')
            cells = (f"`{each.name}`", default, each.range, each.description)
            yield f"| {' | '.join(map(_cell, cells))} |"
        yield ""


def _notes(name: str) -> Iterator[str]:
    """What the module's docstring says below its first paragraphs, numbered notes included."""
    docstring = inspect.cleandoc(sys.modules[registered()[name].__module__].__doc__ or "")
    for paragraph in docstring.split("\n\n")[1:]:
        if not paragraph.startswith("Paper:"):
            yield from (paragraph, "")


def _wrapped_formula(formula: str) -> list[str]:
    """Lines of at most 110 characters, broken at spaces."""
    lines = [""]
    for word in formula.split():
        if len(lines[-1]) + len(word) > 110:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _golden_files(name: str) -> list[Path]:
    found = []
    for path in sorted((ROOT / "tests" / "golden").glob("*.json")):
        cases = json.loads(path.read_text(encoding="utf-8"))
        named = {case["objective"]["name"] for case in cases if "objective" in case}
        if name in named or path.stem.startswith(f"{name}_"):
            found.append(path)
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
