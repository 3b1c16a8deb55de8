"""docs/objectives.md is what the registry, the recipes and the golden files say."""

from prefopt.objectives import registered
from tests.support.scripts import script

SCRIPT = script("make_objectives_page")


def test_the_page_is_current():
    # `make docs` writes it anew.
    assert SCRIPT.PAGE.read_text(encoding="utf-8") == SCRIPT.page()


def test_the_page_has_a_section_per_objective_with_formula_recipes_and_every_parameter():
    sections = dict(section.split("\n", 1) for section in SCRIPT.page().split("\n## ")[1:])

    assert list(sections) == list(registered())
    for name, cls in registered().items():
        assert f"(../recipes/{name}/tiny.yaml)" in sections[name]
        assert "```" in sections[name]
        assert all(f"| `{field}` |" in sections[name] for field in cls.model_fields)


def test_an_objective_with_recorded_values_names_their_file():
    page = SCRIPT.page()
    cringe = page.split("\n## cringe\n")[1].split("\n## ")[0]
    dpo = page.split("\n## dpo\n")[1].split("\n## ")[0]

    assert "tests/golden/cringe_tokens.json" in cringe
    assert "tests/golden/pairs_and_lists.json" in dpo
    assert "tests/golden/trl_1_16.json" in dpo
