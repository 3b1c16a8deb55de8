"""`prefopt objectives`: every objective is described by its own code, in 80 columns or as JSON."""

import json

import pytest

from prefopt.commands.objectives import describe, labelled, run
from prefopt.errors import UserError
from prefopt.objectives import registered


@pytest.mark.parametrize("name", registered())
def test_every_objective_says_all_that_the_table_asks(name: str):
    description = describe(registered()[name])

    assert description.name == name
    assert description.summary.endswith(".")
    assert description.formula
    assert description.paper
    assert set(description.traits) >= {"needs", "needs_reference"}
    for parameter in description.parameters:
        assert parameter.description, parameter.name
        assert parameter.range != "any", parameter.name


def test_parameters_come_with_default_and_range():
    parameters = {each.name: each for each in describe(registered()["dpo"]).parameters}

    assert (parameters["beta"].default, parameters["beta"].range) == (0.1, "> 0")
    assert parameters["label_smoothing"].range == ">= 0, < 0.5"
    assert parameters["length_normalized"].range == "true | false"
    of = {each.name: each for each in describe(registered()["nll"]).parameters}["of"]
    assert of.range == "preferred | best | all"


def test_what_the_parameters_decide_is_not_claimed():
    description = describe(registered()["weighted_sum"])

    assert description.traits["needs_reference"] is None
    assert description.parameters[0].required


def test_a_label_reaches_to_the_next_label_or_empty_line():
    docstring = "Name.\n\nPaper: A, Title,\n2023, eq. 1\nFormula: a +\n  b: c\n\nParagraph."

    assert labelled(docstring, "Paper") == "A, Title, 2023, eq. 1"
    assert labelled(docstring, "Formula") == "a + b: c"


def test_a_missing_label_stops_the_table():
    with pytest.raises(AssertionError, match=r"no line 'Formula: \.\.\.'"):
        labelled("Name.\n\nPaper: A\n", "Formula")


def test_text_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "80")

    run([], as_json=False)

    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    for name, cls in registered().items():
        assert f"\n{name}  " in f"\n{text}"
        assert all(field in text for field in cls.model_fields)


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]):
    run([], as_json=True)

    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == list(registered())


def test_names_choose(capsys: pytest.CaptureFixture[str]):
    run(["ipo", "dpo"], as_json=True)

    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["ipo", "dpo"]


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"no objective 'simppo'\. Did you mean 'simpo'\?"):
        run(["simppo"], as_json=False)


def test_several_end_in_an_overview_and_one_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "120")

    run([], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    run(["dpo"], as_json=False)
    one = capsys.readouterr().out

    start = next(i for i, line in enumerate(lines) if line.startswith("objective  "))
    named = [line.split("  ")[0] for line in lines[start + 1 : -1] if not line.startswith(" ")]
    assert named == list(registered())
    assert lines[-1] == "prefopt objectives NAME shows one of them."
    assert "shows one of them" not in one
