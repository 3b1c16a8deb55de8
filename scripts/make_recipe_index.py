"""Writes docs/recipes.md, the table of all recipes, from the files in recipes/.

Usage: python scripts/make_recipe_index.py, from the project's root. A test checks that the page is
what this writes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from prefopt.config import Recipe, load_recipe
from prefopt.data.section import SourceSection
from prefopt.objectives import registered

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "recipes"
PAGE = ROOT / "docs" / "recipes.md"

_HEAD = """# Recipes

Written by `make docs` from the files. Each file says in its head where its numbers come from, and
what of them is ours; `prefopt train recipes/NAME.yaml` runs it.
"""
_REAL = """## Models of the hub

Sorted by model. Copy one, put your model and data in its place, and read its head before you keep
its numbers. A test trains each on its model in small, with rows in the columns of its data.

The last two columns are formulas of `prefopt plan`, of which no run here has measured any: the
fewest H100 of 80 GB that hold the recipe, and groups per hour if they reach 35 % of 989.4 TFLOP/s.
More than one take `--accelerate zero3`. The published sizes of a model count, and as nobody has
read the data, a prompt has 185 tokens and a response 305, UltraFeedback's means; each prompt has as
many responses as the card of the data says. TOFU's texts are shorter, those of a model that thinks
far longer. Loading, evaluation and the reference's one pass over the data come on top.
`prefopt plan recipes/NAME.yaml --gpus N` plans for your GPUs, and reads data that are there.
"""
_TINY = """## The embedded task

One per objective: a small model on a CPU, without network. `prefopt demo --output demo` writes the
model and the data that they read.
"""
_COLUMNS = (
    "recipe",
    "model",
    "objective",
    "data",
    "how",
    "groups per step",
    "learning rate",
    "length of the run",
)
_PLANNED = ("GPUs", "groups per hour")
_PLAN = re.compile(r" Plan: (\d+) GiB of (?:each of )?(one|\d+) H100.*? ([\d,]+) groups", re.DOTALL)


def paths() -> list[Path]:
    """Every recipe of the book, in the order of its name."""
    return sorted(path for name in registered() for path in (BOOK / name).glob("*.yaml"))


def page() -> str:
    """The whole page."""
    rows = [(path, load_recipe(path)) for path in paths()]
    real = [each for each in rows if each[0].name != "tiny.yaml"]
    tiny = [each for each in rows if each[0].name == "tiny.yaml"]
    real.sort(key=lambda each: (each[1].model.path.lower(), each[0]))
    planned = [(*_cells(*each), *_plan(each[0])) for each in real]
    lines = [_HEAD, _REAL, *_table((*_COLUMNS, *_PLANNED), planned)]
    lines += ["", _TINY, *_table(_COLUMNS, [_cells(*each) for each in tiny])]
    return "\n".join(lines) + "\n"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def _plan(path: Path) -> tuple[str, str]:
    """What `make_recipe_plans.py` wrote into the head of a recipe."""
    found = _PLAN.search(path.read_text(encoding="utf-8").replace("\n# ", " "))
    assert found, f"{path} has no plan: run scripts/make_recipe_plans.py"
    gib, gpus, groups = found.groups()
    return f"{'1' if gpus == 'one' else gpus} x {gib} GiB", groups


def _cells(path: Path, recipe: Recipe) -> tuple[str, ...]:
    name = path.relative_to(BOOK)
    arguments = recipe.training.arguments
    return (
        f"[{name.with_suffix('')}](../recipes/{name})",
        recipe.model.path,
        f"[`{recipe.objective.name}`](objectives.md#{recipe.objective.name})",
        "<br>".join(dict.fromkeys(map(_source, recipe.data.sources))),
        _how(recipe),
        _groups(recipe.training.groups_per_step),
        _scientific(float(arguments["learning_rate"])),
        _length(arguments),
    )


def _source(source: SourceSection) -> str:
    return f"{source.path} {source.name}" if source.name else source.path


def _how(recipe: Recipe) -> str:
    if recipe.adapter is None:
        return "full"
    kind = "QLoRA" if recipe.model.quantization else "LoRA"
    return f"{kind}, rank {recipe.adapter.r}"


def _groups(groups: int | dict[str, int]) -> str:
    if isinstance(groups, dict):
        return ", ".join(f"{count} {role}" for role, count in groups.items())
    return str(groups)


def _scientific(rate: float) -> str:
    """5e-7, which Python writes as 5e-07."""
    mantissa, exponent = f"{rate:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _length(arguments: dict) -> str:
    steps = arguments.get("max_steps", -1)
    if steps > 0:
        return f"{steps} steps"
    epochs = float(arguments["num_train_epochs"])
    return f"{epochs:g} epoch" if epochs == 1 else f"{epochs:g} epochs"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
