"""Every recipe of the book is read as it is, and each tiny one trains."""

import json
import math
from pathlib import Path

import pytest
import transformers

from prefopt.commands.schema import recipe_schema
from prefopt.commands.train import train
from prefopt.config import load_recipe
from prefopt.demo.model import save_start
from prefopt.demo.task import generate, write_data
from prefopt.objectives import registered
from tests.support.slow import slow_but

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "recipes"
RECIPES = [path for name in registered() for path in sorted((BOOK / name).glob("*.yaml"))]
TINY = [path for path in RECIPES if path.name == "tiny.yaml"]
# Pairs, lists, labels, streams, tokens, and a sum.
FAST = [
    BOOK / name / "tiny.yaml" for name in ("dpo", "lipo", "kto", "npo", "cringe", "weighted_sum")
]


def name_of(path: Path) -> str:
    return str(path.relative_to(BOOK))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prefopt demo` writes, with few records."""
    folder = tmp_path_factory.mktemp("demo")
    save_start(folder / "start", seed=0)
    write_data(generate(48, seed=0), folder)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_read_and_optimises_what_its_folder_says(path: Path):
    recipe = load_recipe(path)

    assert recipe.objective.name == path.parent.name


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_names_its_schema_and_the_source_of_its_numbers(path: Path):
    first, *rest = path.read_text(encoding="utf-8").splitlines()

    assert first == "# yaml-language-server: $schema=../recipe.schema.json"
    comment = [line for line in rest[: rest.index("model:")] if line.startswith("#")]
    assert any("Source of the numbers: " in line for line in comment)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipes_file_says_what_is_trained(path: Path):
    recipe = load_recipe(path)

    kind = "full" if recipe.adapter is None else "qlora" if recipe.model.quantization else "lora"
    assert path.name == "tiny.yaml" or path.stem.endswith(f"_{kind}")


def test_no_two_recipes_write_to_the_same_folder():
    folders = [load_recipe(path).training.output_dir for path in RECIPES]

    assert len(set(folders)) == len(folders)


def test_every_objective_has_a_tiny_recipe():
    assert [path.parent.name for path in TINY] == list(registered())


@pytest.mark.parametrize("path", slow_but(FAST, TINY), ids=name_of)
def test_a_tiny_recipe_trains(path: Path, demo: Path, tmp_path: Path):
    sources = load_recipe(path).data.sources
    assert all(source.path.startswith("demo/") for source in sources)
    recipe = load_recipe(
        path,
        [
            f"model.path={demo / 'start'}",
            *(
                f"data.sources.{i}.path={demo / Path(source.path).name}"
                for i, source in enumerate(sources)
            ),
            "data.evaluation.num_groups=8",
            f"data.cache_dir={demo / 'cache'}",
            f"training.output_dir={tmp_path / 'run'}",
            "training.max_steps=3",
            "training.groups_per_step=8",
            "training.eval_steps=3",
            "training.logging_steps=1",
        ],
    )

    train(recipe)

    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert any("eval_loss" in line for line in lines)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_schema_beside_the_recipes_is_current():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if f"transformers=={transformers.__version__}" not in pins:
        pytest.skip("the schema holds the arguments of the pinned transformers")

    written = json.loads((BOOK / "recipe.schema.json").read_text(encoding="utf-8"))

    # `prefopt schema --output recipes/recipe.schema.json` writes it anew.
    assert written == json.loads(json.dumps(recipe_schema()))
