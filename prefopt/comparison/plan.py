"""What a comparison trains: every method with its settings and seeds, as recipes."""

import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from prefopt.comparison.section import ComparisonSection, MethodSection
from prefopt.config import Recipe, load_recipe, recipe_of
from prefopt.errors import UserError

_MOST_SETTINGS = 64
_START = ("path", "revision", "tokenizer", "chat_template", "eos_token")
"""Keys of a recipe's model section that say which model it is and what it reads."""
_BUDGET = ("max_steps", "num_train_epochs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way to train a method."""

    method: str
    number: int
    """From 0, in the order of the grid."""
    values: dict[str, Any]
    """Key of the grid -> value; empty where nothing is varied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One policy to train."""

    setting: Setting
    seed: int
    recipe: Recipe
    is_alone: bool
    """Whether its method has no other setting."""

    @property
    def name(self) -> str:
        """Of its folder, recipe and answers."""
        number = "" if self.is_alone else f"-{self.setting.number}"
        return f"{self.setting.method}{number}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return self.recipe.training.output_dir


def settings_of(name: str, method: MethodSection) -> list[Setting]:
    """All combinations of the values of a grid.

    Raises:
        UserError: if there are too many to mean it.
    """
    combinations = list(itertools.product(*method.grid.values()))
    if len(combinations) > _MOST_SETTINGS:
        raise UserError(
            f"methods.{name}.grid has {len(combinations)} combinations, over {_MOST_SETTINGS}. "
            "Try fewer values."
        )
    return [
        Setting(method=name, number=number, values=dict(zip(method.grid, values, strict=True)))
        for number, values in enumerate(combinations)
    ]


def runs_of(comparison: ComparisonSection) -> dict[str, list[Run]]:
    """Method -> every setting of it with the first seed.

    What differs from the recipe is the folder, the seed, and the order of the data, which is that
    of the seed: the same for all methods.

    Raises:
        UserError: for the first recipe that is wrong, or if start models differ or two settings
            would have the same folder.
    """
    found: dict[str, list[Run]] = {}
    for name, method in comparison.methods.items():
        settings = settings_of(name, method)
        found[name] = [
            _run(comparison, name, method, setting, is_alone=len(settings) == 1)
            for setting in settings
        ]
    every = [run for runs in found.values() for run in runs]
    _check_names(every)
    recipes = [run.recipe for run in every]
    _check_start(recipes)
    return {
        name: [with_seed(run, comparison, comparison.seeds[0]) for run in runs]
        for name, runs in found.items()
    }


def _check_names(runs: Sequence[Run]) -> None:
    """Refuse two settings of one name, such as the first one of `a` and a method `a-0`."""
    named: dict[str, Run] = {}
    for run in runs:
        other = named.setdefault(run.name, run)
        if other is not run:
            raise UserError(
                f"methods.{run.setting.method} and methods.{other.setting.method} would both be "
                f"trained as {run.name}. Rename one of them."
            )


def _check_start(recipes: Sequence[Recipe]) -> None:
    """Refuse methods that start from other weights, or read and end text in another way."""
    starts: dict[str, None] = {}
    for recipe in recipes:
        said = {key: getattr(recipe.model, key) for key in _START}
        said["adapter"] = None if recipe.adapter is None else recipe.adapter.path
        words = [f"{key} {value}" for key, value in said.items() if value is not None]
        starts[" with ".join(words)] = None
    if len(starts) > 1:
        raise UserError(
            f"methods start from different models: {'; '.join(starts)}. "
            "Compare objectives from one start, so that nothing else differs."
        )


def with_seed(run: Run, comparison: ComparisonSection, seed: int) -> Run:
    """The same setting with another seed, which also gives the order of the data.

    Full weights without dropout differ by nothing else from seed to seed.
    """
    moved = replace(run, seed=seed)
    own = {**run.recipe.training.model_dump(), "seed": seed, "data_seed": seed}
    if own.get("report_to", "none") not in ("none", ["none"]):
        own["run_name"] = moved.name
    own["output_dir"] = comparison.output_dir / "runs" / moved.name
    training = type(run.recipe.training).model_validate(own)
    return replace(moved, recipe=run.recipe.model_copy(update={"training": training}))


def notes_on(runs: Mapping[str, list[Run]]) -> list[str]:
    """What readers should know of how the methods differ beside their objectives."""
    notes = []
    numbers = {name: len(settings) for name, settings in runs.items()}
    if len(set(numbers.values())) > 1:
        said = ", ".join(f"{name} {number}" for name, number in numbers.items())
        notes.append(f"Unequal tuning: settings tried are {said}.")
    for section in ("model", "data", "adapter"):
        kinds: dict[str, list[str]] = {}
        for name, settings in runs.items():
            for run in settings[:1]:
                kinds.setdefault(str(run.recipe.resolved().get(section)), []).append(name)
        if len(kinds) > 1:
            said = "; ".join(", ".join(names) for names in kinds.values())
            notes.append(f"The section {section} differs between methods: {said}.")
    for key, of_method in _budgets(runs).items():
        if len(set(of_method.values())) > 1:
            said = ", ".join(f"{name} {value}" for name, value in of_method.items())
            notes.append(f"Unequal budget: {key} is {said}.")
    return notes


def _budgets(runs: Mapping[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Key of the training section -> method -> its value, for what makes runs long or short."""
    found: dict[str, dict[str, Any]] = {}
    for name, settings in runs.items():
        training = settings[0].recipe.training
        given = {key: training.arguments.get(key, "unset") for key in _BUDGET}
        for key, value in {**given, "groups_per_step": training.groups_per_step}.items():
            found.setdefault(key, {})[name] = value
    return found


def _run(
    comparison: ComparisonSection,
    name: str,
    method: MethodSection,
    setting: Setting,
    *,
    is_alone: bool,
) -> Run:
    source = method.recipe or comparison.base
    assert source is not None
    values = load_recipe(source).resolved()
    for section, keys in method.sections.items():
        if section == "objective":
            values[section] = deepcopy(keys)
        else:
            values[section] = {**(values.get(section) or {}), **deepcopy(keys)}
    objective = values["objective"]["name"]
    overrides = [f"{key}={yaml.safe_dump(value).strip()}" for key, value in setting.values.items()]
    try:
        if method.sections and not _needs_reference(values["objective"]):
            values.pop("reference", None)
        recipe = recipe_of(values, [each.removesuffix("\n...") for each in overrides])
    except UserError as error:
        raise UserError(f"methods.{name} ({objective}): {error}") from None
    return Run(setting=setting, seed=comparison.seeds[0], recipe=recipe, is_alone=is_alone)


def _needs_reference(section: Mapping[str, Any]) -> bool:
    from prefopt.objectives import build

    return build(section).needs_reference
