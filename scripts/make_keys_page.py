"""Writes docs/recipe-keys.md, the table of all keys, from the sections and their docstrings.

Usage: python scripts/make_keys_page.py, from the project's root. A test checks that the page is
what this writes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefopt.comparison.section import (
    ComparisonSection,
    EntanglementSection,
    KlSection,
    MethodSection,
    PromptsSection,
)
from prefopt.config import Recipe
from prefopt.data.section import DataSection, EvaluationSection, SourceSection
from prefopt.evaluation.generate.endpoint_section import EndpointSection
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.judge.section import BACKENDS, AnyJudgeSection
from prefopt.models.section import AdapterSection, ModelSection, ReferenceSection
from prefopt.train.diagnostics_section import DiagnosticsSection
from prefopt.train.section import REFUSED, TrainingSection

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipe-keys.md"

_HEAD = """# Keys

Every key of [recipes](#recipes), [files of a comparison](#files-of-a-comparison) and
[files of a judge](#files-of-a-judge). Written by `make docs` from the sections themselves.
`prefopt schema` has the same of recipes for editors; any key can be said on the command line too,
as `training.learning_rate=1e-6`. Unknown keys are refused, with the nearest known one.
"""
_COMPARISON = """## Files of a comparison

What `prefopt compare` reads: [evaluation.md](evaluation.md#compare-objectives) has an example.
"""
_ENDPOINT = """### endpoint

Of `prefopt generate --endpoint URL`, where the option is `url` and the others are said as
`endpoint.timeout=60`.
"""
_JUDGE = """## Files of a judge

What `prefopt judge` reads, and each entry of `judges` in a comparison. `backend` decides which
keys there are: [evaluation.md](evaluation.md#judges). All have these:
"""
_OBJECTIVE = """### objective

`name`, and the parameters of that objective: [objectives.md](objectives.md) has a table of each.
"""
_ARGUMENTS = """All further keys are those of [TrainingArguments][arguments] of transformers:
`learning_rate`, `num_train_epochs`, `max_steps`, `lr_scheduler_type`, `warmup_steps`, `optim`,
`weight_decay`, `max_grad_norm`, `bf16`, `gradient_checkpointing`, `eval_strategy`, `eval_steps`,
`save_strategy`, `save_steps`, `save_total_limit`, `logging_steps`, `report_to`, `run_name`, `seed`,
`use_cpu` and others. These of them are refused:

[arguments]: https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments
"""
_RECIPE_SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "data": DataSection,
    "data.sources": SourceSection,
    "data.evaluation": EvaluationSection,
    "reference": ReferenceSection,
    "adapter": AdapterSection,
    "training": TrainingSection,
    "diagnostics": DiagnosticsSection,
}
_COMPARISON_SECTIONS: dict[str, type[BaseModel]] = {
    "methods": MethodSection,
    "prompts": PromptsSection,
    "generation": GenerationSection,
    "kl": KlSection,
    "entanglement": EntanglementSection,
}
_TYPES = {"string": "text", "integer": "whole number", "boolean": "true, false", "null": "null"}
_LIMITS = {
    "exclusiveMinimum": "above {}",
    "minimum": "from {}",
    "exclusiveMaximum": "below {}",
    "maximum": "up to {}",
}


def page() -> str:
    """The whole page."""
    lines = [_HEAD, "## Recipes", "", *_table(Recipe), ""]
    for name, section in _RECIPE_SECTIONS.items():
        if name == "reference":
            lines.append(_OBJECTIVE)
        lines += [f"### {name}", "", *_table(section), ""]
        if name == "training":
            lines += [_ARGUMENTS, *_refused(), ""]
    lines += [_COMPARISON, *_table(ComparisonSection), ""]
    for name, section in _COMPARISON_SECTIONS.items():
        lines += [f"### {name}", "", *_table(section), ""]
    lines += [_ENDPOINT, *_table(EndpointSection), "", _JUDGE, *_table(AnyJudgeSection), ""]
    for name, section in BACKENDS.items():
        lines += [f"### {name}", "", section.__doc__ or "", ""]
        rows = _table(section, leave_out=set(AnyJudgeSection.model_fields))
        # The keys that a judge must have come first, `backend` before all.
        lines += [*sorted(rows, key=_rank), ""]
    return "\n".join(lines)


def _table(section: type[BaseModel], leave_out: set[str] = frozenset()) -> Iterator[str]:
    schema = section.model_json_schema()
    required = schema.get("required", [])
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in section.model_fields.items()
    }
    yield from ("| key | values | default | meaning |", "|---|---|---|---|")
    for name, field in schema["properties"].items():
        if name not in leave_out:
            default = "required" if name in required else _default(defaults[name])
            meaning = " ".join(field.get("description", "").split())
            linked = re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", meaning)
            yield f"| {' | '.join(map(_cell, (f'`{name}`', _values(field), default, linked)))} |"


def _values(field: dict[str, Any]) -> str:
    """What a property of a JSON schema accepts, in words."""
    if "$ref" in field or "allOf" in field:
        return _section(field.get("$ref") or field["allOf"][0]["$ref"])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_values(choice) for choice in field["anyOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {_values(field.get('items', {}))}"
    if kind == "object":
        return f"mapping to {_values(_entry(field))}"
    if field.get("format") == "path":
        return "path"
    limits = [text.format(_short(field[key])) for key, text in _LIMITS.items() if key in field]
    return " ".join([_TYPES.get(kind, kind), ", ".join(limits)]).strip()


def _entry(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a mapping's values, which names with a pattern have under that."""
    patterns = list(field.get("patternProperties", {}).values())
    more = field.get("additionalProperties")
    return patterns[0] if patterns else more if isinstance(more, dict) else {}


def _section(reference: str) -> str:
    """A link to the section's table, or to where the section is told."""
    name = reference.rpartition("/")[2]
    for place, section in (_RECIPE_SECTIONS | _COMPARISON_SECTIONS).items():
        if section.__name__ == name:
            return f"[{place}](#{place.replace('.', '')})"
    places = {
        "Objective": "[objective](#objective)",
        "AnyJudgeSection": "[judge](#files-of-a-judge)",
    }
    return places[name]


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{number:g}' for number in value)}]`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _rank(row: str) -> int:
    """Head of the table, `backend`, what is required, the rest."""
    if not row.startswith("| `"):
        return 0
    return 1 if row.startswith("| `backend`") else 2 if "| required |" in row else 3


def _short(number: float) -> str:
    """2**63 rather than 19 digits."""
    exponent = int(number).bit_length() - 1
    return f"2^{exponent}" if exponent > 20 and number == 2**exponent else f"{number:g}"


def _refused() -> Iterator[str]:
    """The refused keys, those with the same reason together."""
    yield from ("| refused | why, and what to do instead |", "|---|---|")
    for reason in dict.fromkeys(REFUSED.values()):
        keys = ", ".join(f"`{key}`" for key, why in REFUSED.items() if why == reason)
        yield f"| {keys} | {_cell(reason)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
