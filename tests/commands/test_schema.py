"""`prefopt schema`: what an editor needs to complete and check every key of a recipe."""

import json
import re
from pathlib import Path

import pytest

from prefopt.commands.schema import recipe_schema, run
from prefopt.config import Recipe
from prefopt.errors import UserError
from prefopt.objectives import registered
from prefopt.train.section import REFUSED


def test_sections_are_those_of_the_recipe():
    schema = recipe_schema()

    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False


def test_every_objective_is_spelled_out():
    choices = recipe_schema()["properties"]["objective"]["anyOf"]

    found = {choice["properties"]["name"]["const"]: set(choice["properties"]) for choice in choices}
    assert found == {name: {"name", *cls.model_fields} for name, cls in registered().items()}
    assert all("name" in choice["required"] for choice in choices)


def test_training_knows_our_keys_and_those_of_transformers_but_no_refused_one():
    training = recipe_schema()["$defs"]["TrainingSection"]

    assert {"groups_per_step", "learning_rate", "report_to"} <= set(training["properties"])
    assert set(REFUSED).isdisjoint(training["properties"])
    assert training["additionalProperties"] is False


def test_every_reference_leads_somewhere():
    schema = recipe_schema()

    references = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema)))
    assert references <= set(schema["$defs"])


def test_it_goes_to_a_file_or_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(tmp_path / "schema.json")
    run(None)

    text = (tmp_path / "schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == recipe_schema()
    assert capsys.readouterr().out == text


def test_a_folder_that_does_not_exist_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"schema\.json: cannot write the schema, No such file"):
        run(tmp_path / "nowhere" / "schema.json")
