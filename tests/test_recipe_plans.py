"""Heads of recipes and docs/recipes.json are what the formulas of `prefopt plan` say."""

import re
from pathlib import Path

import pytest

from prefopt.config import load_recipe
from tests.support.scripts import script

SCRIPT = script("make_recipe_plans")
PATHS = SCRIPT.paths()
KNOWN = SCRIPT.known_plans()
# On one card in full, as an adapter, in 4 bits, on lists of seven, and on several cards.
OTHERS = (
    "dpo/qwen3-0.6b_full",
    "dpo/llama-3.1-8b-instruct_lora",
    "dpo/qwen3-8b_qlora",
    "infonca/llama-3.1-8b-instruct_lora",
    "simpo/gemma-2-9b-it_full",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(SCRIPT.BOOK).with_suffix(""))


def plan_of(path: Path) -> dict[str, object]:
    return KNOWN[SCRIPT.basis(load_recipe(path))]


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_the_plan_in_a_recipes_head_is_current(path: Path):
    # `make docs` writes it anew.
    assert path.read_text(encoding="utf-8") == SCRIPT.with_plan(path, KNOWN)


def test_the_file_keeps_no_plan_that_no_recipe_has():
    assert set(KNOWN) == {SCRIPT.basis(load_recipe(path)) for path in PATHS}


@pytest.mark.parametrize(
    "name",
    ["kto/llama-3.2-1b-instruct_full", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)],
)
def test_a_plan_is_that_of_the_formulas(name: str):
    path = SCRIPT.BOOK / f"{name}.yaml"

    assert plan_of(path) == SCRIPT.smallest_plan(load_recipe(path))


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_recipe_fits_the_device_that_its_head_names(path: Path):
    head = path.read_text(encoding="utf-8").partition("\nmodel:\n")[0].replace("\n# ", " ")
    head = head.partition(" Plan: ")[0]
    plan = plan_of(path)

    sizes = re.findall(r"on one (\d+) GB device", head)
    assert len(sizes) <= 1
    assert all(plan["num_gpus"] == 1 and plan["gib"] <= int(size) for size in sizes)
    assert ("Needs several 80 GB devices" in head) == (plan["num_gpus"] > 1)


def test_a_model_without_sizes_is_named():
    with pytest.raises(LookupError, match=r"some/model is not in hub\.json"):
        SCRIPT.real_sizes("some/model")
