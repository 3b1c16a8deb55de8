"""docs/scaling.md is what docs/scaling.json says, and that is what the formulas say now."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
measure = import_module("measure_memory")
script = import_module("make_scaling_page")

RESULTS = json.loads(script.RESULTS.read_text(encoding="utf-8"))
CASES = {case.name: case for case in measure.cases()}


def test_the_page_is_current():
    assert script.PAGE.read_text(encoding="utf-8") == script.page(RESULTS)


def test_every_case_was_measured():
    assert [each["name"] for each in RESULTS["cases"]] == list(CASES)
    assert all(each["measured"] > 0 for each in RESULTS["cases"])


@pytest.mark.parametrize("name", ["7M, full, single, 4096 tokens", "110M, full, zero3, 256 tokens"])
def test_predictions_are_those_of_the_formulas(name, tmp_path):
    case = CASES[name]
    (written,) = (each for each in RESULTS["cases"] if each["name"] == name)

    found = measure.predict(case, measure.save_shape(case.size, tmp_path))

    assert written["total"] == round(found.total / 2**20, 1)


# Each model, both ways to train, one GPU and several.
@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 4, 8, len(script.PLANNED) - 1])
def test_plans_are_those_of_the_formulas(i):
    assert RESULTS["plans"][i] == script.plan_for(*script.PLANNED[i])
