"""Writes into the head of each recipe for a model of the hub what `prefopt plan` says it takes.

Usage: python scripts/make_recipe_plans.py [--all], from the project's root. Sizes of models and
numbers of responses come from scripts/hub.json, as nothing is asked of the hub. docs/recipes.json
keeps each plan with what it rests on: only what is new is planned for, with --all everything.
Tests check that lines and file are what this writes.
"""

import json
import re
import sys
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from prefopt.commands.plan_numbers import Hardware, make_plan
from prefopt.config import Recipe, load_recipe
from prefopt.data.lengths import assumed_lengths
from prefopt.objectives import registered
from prefopt.train.footprint import Mode

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "recipes"
HUB = Path(__file__).with_name("hub.json")
PLANS = ROOT / "docs" / "recipes.json"
GPUS = (1, 2, 4, 8, 16, 32)
_WIDTH = 100
_LINES = re.compile(r"^# Plan: .*\n(?:# .*\n)*(?=model:)", re.MULTILINE)
_ARGUMENTS = ("bf16", "gradient_checkpointing", "activation_checkpointing", "optim")
_TRAITS = (
    "needs_reference",
    "needs_reference_distribution",
    "mismatches_responses",
    "couples_groups",
)


def paths() -> list[Path]:
    """Every recipe for a model of the hub, in the order of its name."""
    found = (path for name in registered() for path in (BOOK / name).glob("*.yaml"))
    return sorted(path for path in found if path.name != "tiny.yaml")


def with_plan(path: Path, known: dict[str, dict[str, Any]]) -> str:
    """The recipe's text with its plan as the last lines of its head, in the place of an old one."""
    text = _LINES.sub("", path.read_text(encoding="utf-8"), count=1)
    head, model, rest = text.partition("\nmodel:\n")
    return f"{head}\n{comment(known[basis(load_recipe(path))])}{model}{rest}"


def comment(plan: dict[str, Any]) -> str:
    """A plan as the lines of a recipe's head."""
    num, responses = plan["num_gpus"], plan["responses"]
    gpus = "one H100" if num == 1 else f"each of {num} H100 with `--accelerate {plan['mode']}`"
    lengths = f"{plan['response']} tokens to prompts of {plan['prompt']}"
    said = (
        f"Plan: {plan['gib']} GiB of {gpus}, {plan['groups_per_hour']:,} groups per hour, with "
        f"{responses} {'response' if responses == 1 else 'responses'} of {lengths}. By the "
        "formulas of `prefopt plan`, not measured."
    )
    return "\n".join(textwrap.wrap(said, _WIDTH, initial_indent="# ", subsequent_indent="# "))


def basis(recipe: Recipe) -> str:
    """All of a recipe that its plan rests on, as text."""
    model = recipe.model.model_dump(include={"dtype", "layout", "quantization", "dropout"})
    training = recipe.training
    values = {
        "sizes": real_sizes(recipe.model.path),
        "model": model | {"attention": recipe.model.attn_implementation},
        "adapter": recipe.adapter.model_dump() if recipe.adapter else None,
        "reference": recipe.reference.model_dump() if recipe.reference else None,
        "max_length": recipe.data.max_length,
        "responses": num_responses(recipe),
        "groups": sum(map(training.groups_of, recipe.data.roles or [""])),
        "tokens": training.tokens_per_micro_batch,
        "arguments": {name: training.arguments.get(name) for name in _ARGUMENTS},
        "objective": {name: getattr(recipe.objective, name) for name in _TRAITS},
    }
    return json.dumps(values, sort_keys=True)


def smallest_plan(recipe: Recipe) -> dict[str, Any]:
    """For the fewest GPUs that hold the recipe: one alone, or several under ZeRO-3."""
    lengths = assumed_lengths(recipe.data.max_length, num_responses(recipe))
    with tempfile.TemporaryDirectory() as folder:
        AutoConfig.for_model(**real_sizes(recipe.model.path)).save_pretrained(folder)
        model = recipe.model.model_copy(update={"path": folder})
        local = recipe.model_copy(update={"model": model})
        for num_gpus in GPUS:
            mode: Mode = "single" if num_gpus == 1 else "zero3"
            plan = make_plan(local, (mode,), Hardware(num_gpus=num_gpus), lengths=lengths)
            if plan.modes[0].fits:
                break
        assert plan.modes[0].fits, f"{recipe.model.path} does not fit {GPUS[-1]} GPUs"
    return {
        "num_gpus": num_gpus,
        "mode": mode,
        "gib": round(plan.modes[0].total / 2**30),
        "groups_per_hour": _two_digits(3600 * plan.groups_per_step / plan.seconds_per_step),
        "responses": num_responses(recipe),
        "response": int(lengths.responses[0, 0]),
        "prompt": int(lengths.prompts[0]),
    }


def real_sizes(name: str) -> dict[str, Any]:
    """What the configuration of a model on the hub says of its sizes.

    Raises:
        LookupError: for a model that is not in the file.
    """
    hub = _hub()
    if name not in hub["models"]:
        raise LookupError(f"{name} is not in {HUB.name}: add its sizes there.")
    sizes: dict[str, Any] = hub["sizes"][hub["models"][name]]
    return sizes


def num_responses(recipe: Recipe) -> int:
    """Of each prompt, after the recipe has chosen among them."""
    counts = {_hub()["responses"].get(source.path, 2) for source in recipe.data.sources}
    assert len(counts) == 1, "sources of one recipe have other numbers of responses"
    [count] = counts
    kept = {"best_worst": 2, "best_random": 2, "top_k": recipe.data.top_k}
    return min(count, kept.get(recipe.data.keep) or count)


def known_plans() -> dict[str, dict[str, Any]]:
    """The plans of docs/recipes.json by what they rest on."""
    written = json.loads(PLANS.read_text(encoding="utf-8")) if PLANS.is_file() else []
    return {json.dumps(each["basis"], sort_keys=True): each["plan"] for each in written}


@cache
def _hub() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(HUB.read_text(encoding="utf-8"))
    return found


def _two_digits(number: float) -> int:
    """More of them would say more than is known."""
    return int(float(f"{number:.2g}"))


def main(*, is_anew: bool) -> None:
    """Plan for what is new, or for all, and write file and lines."""
    known = {} if is_anew else known_plans()
    plans: dict[str, dict[str, Any]] = {}
    for path in paths():
        recipe = load_recipe(path)
        key = basis(recipe)
        if key not in plans:
            plans[key] = known.get(key) or smallest_plan(recipe)
    content = [{"basis": json.loads(key), "plan": plans[key]} for key in sorted(plans)]
    PLANS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in paths():
        path.write_text(with_plan(path, plans), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_anew="--all" in sys.argv[1:])
