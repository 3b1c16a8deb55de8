"""What keeps the house in order: sizes, arrows of knowledge, speed of `--help`, papers in place."""

import ast
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import jaxtyping
import pytest
import torch
import yaml
from packaging.requirements import Requirement

import prefopt
from prefopt.cli import app
from prefopt.config import Recipe
from prefopt.errors import check_section
from prefopt.objectives import registered
from prefopt.types import ObjectiveInputs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prefopt"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MAX_LINES = 300
MAX_LINES_OF_OBJECTIVE = 140
MAX_HELP_SECONDS = 1.0
# Not one loss each: the package, what an objective is, and a sum of several.
NOT_OBJECTIVES = ("__init__.py", "base.py", "weighted_sum.py")


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders or (".",):
        yield from sorted((PACKAGE / folder).rglob("*.py"))


def named(paths: Iterator[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


MODULES = [module.name for module in walk_packages([str(PACKAGE)], "prefopt.")]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str):
    if name != "prefopt.__main__":
        import_module(name)


@pytest.mark.parametrize("path", named(sources()))
def test_files_stay_short_and_leave_nothing_open(path: Path):
    text = path.read_text(encoding="utf-8")

    is_objective = path.parent.name == "objectives" and path.name not in NOT_OBJECTIVES
    assert len(text.splitlines()) <= (MAX_LINES_OF_OBJECTIVE if is_objective else MAX_LINES)
    assert re.findall(r"TODO|FIXME|type: ignore|noqa", text) == []


@pytest.mark.parametrize("path", named(sources("train", "models", "data", "ops")))
def test_nothing_below_the_commands_knows_an_objective_by_name(path: Path):
    literals = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }

    assert literals & set(registered()) == set()


@pytest.mark.parametrize("name", registered())
def test_every_objective_has_recipes_and_a_test(name: str):
    assert list((ROOT / "recipes" / name).glob("*.yaml")) != []
    assert (ROOT / "tests" / "objectives" / f"test_{name}.py").is_file()


def test_help_answers_in_under_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "prefopt", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)

    assert min(seconds) < MAX_HELP_SECONDS


def test_the_command_line_imports_nothing_heavy():
    code = "import prefopt.cli, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    heavy = {"torch", "transformers", "datasets", "peft", "accelerate", "trl", "matplotlib"}
    assert heavy & set(result.stdout.split()) == set()


def test_shapes_are_checked_in_tests():
    pair = torch.zeros(2, 2)

    with pytest.raises(jaxtyping.TypeCheckError):
        ObjectiveInputs(
            policy_logps=pair,
            reference_logps=None,
            num_tokens=torch.ones(2, 3, dtype=torch.int64),
            scores=pair,
            where=torch.ones(2, 2, dtype=torch.bool),
        )


def test_the_version_is_said_once():
    assert PYPROJECT["project"]["version"] == prefopt.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"[{prefopt.__version__}]" in changelog


def test_every_dependency_has_a_tested_pin_within_its_range():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    asked = [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]
    others = [need for need in asked if need.name != "prefopt"]

    unmet = [str(need) for need in others if not need.specifier.contains(pins.get(need.name, ""))]
    assert unmet == []


def test_the_extra_all_is_every_other_one_but_those_of_developers():
    extras = PYPROJECT["project"]["optional-dependencies"]

    [everything] = [Requirement(text) for text in extras["all"]]
    assert everything.extras == set(extras) - {"all", "dev"}


def commands() -> set[str]:
    single = {command.callback.__name__ for command in app.registered_commands if command.callback}
    return single | {str(group.name) for group in app.registered_groups}


def test_the_readme_names_every_command_and_no_other():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", README)
    code = "\n".join(blocks + inline)

    assert set(re.findall(r"\bprefopt ([a-z]+)", code)) == commands()


def test_the_readmes_recipe_is_a_recipe():
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None

    check_section(Recipe, yaml.safe_load(block[1]), "")


def test_the_readmes_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)

    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_the_readme_names_every_objective():
    table = README.split("\n## Objectives\n")[1].split("\n## ")[0]

    assert set(registered()) <= set(re.findall(r"`([a-z0-9_]+)`", table))
