"""`prefopt objectives`: what the registry holds, read from the objectives themselves."""

import inspect
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_origin, get_type_hints

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefopt.errors import UserError, did_you_mean
from prefopt.objectives import Objective, registered

WHAT_NEEDS_MEAN = {
    "preferred_pairs": "responses of one prompt with different scores",
    "graded": "scored responses; the size of a score counts",
    "labels": "responses with score 1 or 0, each for itself; K = 1 suffices",
    "responses": "responses; scores only select, if at all",
}
_SPOKEN_TRAITS = {
    "score_range": "scores must lie in its range",
    "needs_tokens": "reads single tokens",
    "needs_token_weights": "needs token weights from the data",
    "num_top_logits": "looks at the most likely tokens of a position",
    "needs_reference_distribution": "reads the reference's whole distribution",
    "needs_diff": "reads in which tokens responses differ",
    "couples_groups": "the groups of a step depend on each other",
    "mismatches_responses": "takes a statistic of responses to other prompts",
}
_LIMITS = {
    "exclusiveMinimum": "> {}",
    "minimum": ">= {}",
    "exclusiveMaximum": "< {}",
    "maximum": "<= {}",
    "minItems": "{} or more",
    "maxItems": "at most {}",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One key of the recipe's `objective:` section."""

    name: str
    default: Any
    """None where `required`."""
    required: bool
    range: str
    """The values that are accepted, in words."""
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What there is to know of an objective before using it."""

    name: str
    summary: str
    formula: str
    paper: str
    traits: dict[str, Any]
    """By name; None where the objective's parameters decide, and absent where there is none."""
    parameters: list[Parameter]


def run(names: Sequence[str], as_json: bool) -> None:
    """Print the named objectives, or all.

    Raises:
        UserError: if there is no objective of a given name.
    """
    classes = registered()
    for name in names:
        if name not in classes:
            raise UserError(f"no objective '{name}'. {did_you_mean(name, classes)}")
    descriptions = [describe(classes[name]) for name in names or classes]
    console = Console(highlight=False, markup=False)
    if as_json:
        text = json.dumps([asdict(each) for each in descriptions], indent=2)
        sys.stdout.write(f"{text}\n")
        return
    for each in descriptions:
        _print(console, each)
    if len(descriptions) > 1:
        # Last, where a terminal ends up.
        console.print(_overview(descriptions))
        console.print("prefopt objectives NAME shows one of them.")


def describe(cls: type[Objective]) -> Description:
    """The description of an objective, from its class and its module's docstring."""
    module_doc = sys.modules[cls.__module__].__doc__ or ""
    return Description(
        name=cls.name,
        summary=inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0],
        formula=labelled(module_doc, "Formula"),
        paper=labelled(module_doc, "Paper"),
        traits=_traits(cls),
        parameters=_parameters(cls),
    )


def labelled(docstring: str, label: str) -> str:
    """The text after `label:` in a docstring, up to the next label or empty line, on one line."""
    found = re.search(rf"^{label}: *(.+(?:\n(?![A-Z]\w*: ).+)*)", docstring, re.MULTILINE)
    assert found, f"the objective's module docstring has no line '{label}: ...':\n{docstring}"
    return " ".join(found[1].split())


def _traits(cls: type[Objective]) -> dict[str, Any]:
    """Every trait that `Objective` declares, with this class's value."""
    hints = get_type_hints(Objective, include_extras=True)
    traits = [
        name
        for name, hint in hints.items()
        if get_origin(hint) is ClassVar and name in vars(Objective).get("__annotations__", {})
    ]
    values = {name: inspect.getattr_static(cls, name) for name in traits if name != "name"}
    plain = (bool, int, str, tuple)
    return {
        name: value if isinstance(value, plain) else None
        for name, value in values.items()
        if value is not None
    }


def _parameters(cls: type[Objective]) -> list[Parameter]:
    schema = cls.model_json_schema()
    required = schema.get("required", [])
    return [
        Parameter(
            name=name,
            default=field.get("default"),
            required=name in required,
            range=_range(field),
            description=" ".join(field.get("description", "").split()),
        )
        for name, field in schema["properties"].items()
    ]


def _range(field: dict[str, Any]) -> str:
    """Accepted values of a property of a JSON schema, in words."""
    if "anyOf" in field:
        return " or ".join(_range(choice) for choice in field["anyOf"])
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "boolean":
        return "true | false"
    limits = [text.format(field[key]) for key, text in _LIMITS.items() if key in field]
    return ", ".join(limits) or str(field.get("type", "any"))


def _print(console: Console, description: Description) -> None:
    console.print(Text.assemble((description.name, "bold cyan"), "  ", description.summary))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("formula", description.formula)
    facts.add_row("paper", description.paper)
    facts.add_row("data", _data(description.traits))
    facts.add_row("reference", _reference(description.traits))
    facts.add_row("recipes", f"recipes/{description.name}/")
    others = spoken_traits(description.traits)
    if others:
        facts.add_row("also", ", ".join(others))
    console.print(Padding(facts, (0, 0, 0, 2)))
    if description.parameters:
        console.print(Padding(_parameter_table(description.parameters), (0, 0, 0, 2)))
    console.print()


def _overview(descriptions: Sequence[Description]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("objective", no_wrap=True, style="bold cyan")
    table.add_column("what it does", overflow="fold")
    table.add_column("reads", no_wrap=True)
    table.add_column("reference", no_wrap=True)
    for each in descriptions:
        needs, reference = each.traits["needs"], each.traits["needs_reference"]
        reads = "by parameters" if needs is None else needs.replace("_", " ")
        says = {True: "yes", False: "no", None: "by parameters"}[reference]
        table.add_row(each.name, each.summary, reads, says)
    return table


def spoken_traits(traits: dict[str, Any]) -> list[str]:
    """What is unusual about an objective, in words."""
    return [
        f"{text}, if its parameters say so" if traits[name] is None else text
        for name, text in _SPOKEN_TRAITS.items()
        if name in traits and (traits[name] is None or traits[name])
    ]


def _data(traits: dict[str, Any]) -> str:
    needs = traits["needs"]
    return "what its parameters ask for" if needs is None else WHAT_NEEDS_MEAN[needs]


def _reference(traits: dict[str, Any]) -> str:
    return {True: "needed", False: "not needed", None: "if its parameters ask for it"}[
        traits["needs_reference"]
    ]


def _parameter_table(parameters: Sequence[Parameter]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("parameter", no_wrap=True, style="bold")
    table.add_column("default", no_wrap=True)
    table.add_column("range", max_width=16)
    table.add_column("meaning", overflow="fold")
    for each in parameters:
        default = "required" if each.required else json.dumps(each.default).strip('"')
        table.add_row(each.name, default, each.range, each.description)
    return table
