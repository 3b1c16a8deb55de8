"""`prefopt schema`: the JSON schema of recipes, so that editors complete and check keys."""

import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, create_model
from transformers import TrainingArguments

from prefopt.config import Recipe
from prefopt.errors import UserError
from prefopt.objectives import Objective, registered
from prefopt.train.section import REFUSED


def run(output: Path | None) -> None:
    """Write the schema to a file, or to standard output.

    Raises:
        UserError: if the file cannot be written.
    """
    text = json.dumps(recipe_schema(), indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: cannot write the schema, {error.strerror}.") from error


def recipe_schema() -> dict[str, Any]:
    """The schema of a whole recipe, with every objective and every training argument spelled out.

    The recipe's own schema cannot hold these: objectives register themselves, and the training
    section passes its further keys on to transformers.
    """
    schema = Recipe.model_json_schema()
    arguments = _arguments_model().model_json_schema()
    schema["$defs"] |= arguments.get("$defs", {})
    schema["$defs"].pop("Objective", None)
    schema["properties"]["objective"] = {
        "description": schema["properties"]["objective"]["description"],
        "anyOf": [_objective_schema(cls) for cls in registered().values()],
    }
    training = schema["$defs"]["TrainingSection"]
    training["properties"] = {**arguments["properties"], **training["properties"]}
    training["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _objective_schema(cls: type[Objective]) -> dict[str, Any]:
    schema = cls.model_json_schema()
    schema["properties"] = {"name": {"const": cls.name}, **schema["properties"]}
    schema["required"] = ["name", *schema.get("required", [])]
    return schema


def _arguments_model() -> type[BaseModel]:
    """A model with every key of TrainingArguments that a recipe may say."""
    hints = typing.get_type_hints(TrainingArguments)
    fields: dict[str, Any] = {
        field.name: (hints[field.name], field.default)
        for field in dataclasses.fields(TrainingArguments)
        if field.init and field.default is not dataclasses.MISSING and field.name not in REFUSED
    }
    return create_model("TrainingArguments", **fields)
