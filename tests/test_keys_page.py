"""docs/recipe-keys.md is what the sections of recipes, comparisons and judges say."""

from collections.abc import Iterator

import pytest

from prefopt.evaluation.judge import section as judges
from prefopt.objectives import Objective
from prefopt.section import Section
from prefopt.train.section import REFUSED
from tests.support.scripts import script

# Nobody writes these: what kinds of judges have in common.
PARTS = {judges.ScaledSection, judges.TypedSection, judges.EndpointSection}


SCRIPT = script("make_keys_page")


@pytest.fixture(scope="module")
def written() -> str:
    return SCRIPT.PAGE.read_text(encoding="utf-8")


def test_the_page_is_current(written: str):
    # `make docs` writes it anew.
    assert written == SCRIPT.page()


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    for each in of.__subclasses__():
        # Objectives have a page of their own.
        if each.__module__.startswith("prefopt.") and each is not Objective:
            yield each
            yield from sections(each)


def test_every_key_of_every_section_is_there_with_what_its_docstring_says(written: str):
    rows = set(written.replace("\\|", "|").splitlines())
    found = [each for each in sections() if each not in PARTS]

    assert len(found) > 20
    for section in found:
        own = set(section.model_fields) - set(judges.AnyJudgeSection.model_fields)
        for name in own if section in judges.BACKENDS.values() else section.model_fields:
            begin = " ".join(section.model_fields[name].description.split())[:30]
            assert any(f"| `{name}` |" in row and f"| {begin}" in row for row in rows), name


def test_every_refused_training_key_is_there_with_its_reason(written: str):
    rows = written.split("| refused |")[1].split("\n\n")[0].splitlines()

    for key, reason in REFUSED.items():
        assert any(f"`{key}`" in row and row.endswith(f"| {reason} |") for row in rows)


def test_rows_say_what_a_key_accepts_and_what_holds_without_it(written: str):
    def cells(section: str, key: str) -> list[str]:
        part = written.split(f"\n### {section}\n")[1].split("\n#")[0]
        (row,) = (row for row in part.splitlines() if row.startswith(f"| `{key}` |"))
        return [cell.strip() for cell in row.strip("|").split("|")][1:3]

    assert cells("data.evaluation", "fraction") == ["number above 0, below 1 or null", "`null`"]
    assert cells("data", "keep") == ["`all`, `best_worst`, `best_random`, `top_k`", "`all`"]
    assert cells("data", "sources") == ["list of [data.sources](#datasources)", "required"]
    assert cells("data.sources", "columns") == ["mapping to text or null", "`{}`"]
    assert cells("training", "output_dir") == ["path", "required"]
    assert cells("rule", "levels") == ["list of number", "`[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]`"]
    assert cells("generation", "temperature") == ["number from 0, up to 10", "`0.0`"]
