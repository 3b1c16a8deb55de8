"""Writes docs/scaling.md from docs/scaling.json, after planning for a 1B and an 8B model anew.

Usage: python scripts/make_scaling_page.py, from the project's root. What was measured comes from
`python scripts/measure_memory.py`. A test checks that the page is what this writes.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure_memory import cases, predict, save_shape
from transformers import LlamaConfig

from prefopt.commands.plan_numbers import RESERVE, Hardware, Plan, make_plan
from prefopt.commands.plan_report import gib
from prefopt.config import Recipe
from prefopt.train.footprint import MODES, Footprint
from prefopt.train.progress import clock

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "scaling.json"
PAGE = ROOT / "docs" / "scaling.md"
TEMPLATE = Path(__file__).with_name("scaling_template.md")
GPUS = (1, 8, 16)
MIB = 2**20
_ON_ONE_GPU = ("single", "zero3_offload")

_LLAMA = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
SHAPES = {
    "Llama 3.2 1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Llama 3.1 8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}


def recipe(model: Path, *, is_lora: bool) -> Recipe:
    """Full training with float32 masters, or an adapter on bfloat16 weights."""
    values: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "bfloat16" if is_lora else "float32"},
        "data": {"sources": [{"path": "some/dataset"}], "max_length": 1024},
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": "runs/plan",
            "groups_per_step": 128,
            "tokens_per_micro_batch": 16384,
            "bf16": True,
            "gradient_checkpointing": True,
        },
    }
    if is_lora:
        values["adapter"] = {"r": 16, "alpha": 32}
    return Recipe.model_validate(values)


PLANNED = [
    (name, is_lora, num_gpus) for name in SHAPES for is_lora in (False, True) for num_gpus in GPUS
]
"""What is planned for: a model, whether by adapter, and on how many GPUs."""


def make_plans() -> list[dict[str, Any]]:
    """All plans of the page."""
    return [plan_for(*case) for case in PLANNED]


def plan_for(name: str, is_lora: bool, num_gpus: int) -> dict[str, Any]:
    """A plan in plain types; the folder of the model is left out."""
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(**_LLAMA, **SHAPES[name], max_position_embeddings=131072)
        config.save_pretrained(folder)
        modes = _ON_ONE_GPU if num_gpus == 1 else MODES[1:]
        plan = make_plan(recipe(Path(folder), is_lora=is_lora), modes, Hardware(num_gpus=num_gpus))
    return {"name": name, "is_lora": is_lora, **_plain(plan)}


def _plain(plan: Plan) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    return {key: value for key, value in content.items() if key not in ("model", "notes")}


def page(results: Mapping[str, Any]) -> str:
    """The whole page: prose from the template, numbers from the results."""
    return TEMPLATE.read_text(encoding="utf-8").format(
        reserve=gib(RESERVE),
        measured="\n".join(_measured(results)),
        remark=_remark(results),
        planned="\n".join(_planned(results)),
        **asdict(Hardware(num_gpus=1)),
    )


def _measured(results: Mapping[str, Any]) -> Iterator[str]:
    taken = results["cases"]
    off = [each["total"] / each["measured"] - 1 for each in taken]
    within = sum(abs(each) <= 0.15 for each in off)
    versions = results["versions"]
    named = ("torch", "transformers", "accelerate", "peft", "deepspeed")
    installed = ", ".join(f"{name} {versions[name]}" for name in named if name in versions)
    yield (
        f"Taken on {results['machine']}, one thread a process, with {installed}. {within} of "
        f"{len(taken)} predictions are within 15 %; they are off by {min(off):+.0%} to "
        f"{max(off):+.0%}, in the middle by {statistics.median(off):+.0%}. In MiB:"
    )
    yield ""
    names = list(taken[0]["predicted"])
    shown = [name for name in names if name not in ("reference", "host")]
    yield f"| run | {' | '.join(shown)} | predicted | measured | off |"
    yield f"|---|{'---:|' * (len(shown) + 3)}"
    for each, deviation in zip(taken, off, strict=True):
        parts = " | ".join(f"{each['predicted'][name]:,.0f}" for name in shown)
        yield (
            f"| {each['name']} | {parts} | {each['total']:,.0f} | {each['measured']:,.0f} | "
            f"{deviation:+.0%} |"
        )


def _remark(results: Mapping[str, Any]) -> str:
    """How much a process has that is not in any part."""
    alone = [each for each in results["cases"] if ", single, " in each["name"]]
    more = [each["measured"] - each["total"] for each in alone]
    return (
        f"one process alone has {min(more):.0f} to {max(more):.0f} MiB more than predicted, large "
        "model or small: thread pools, workspaces, libraries that load late. No formula has that, "
        "and beside a small model it is much."
    )


def _planned(results: Mapping[str, Any]) -> Iterator[str]:
    for name in SHAPES:
        for is_lora in (False, True):
            chosen = [p for p in results["plans"] if (p["name"], p["is_lora"]) == (name, is_lora)]
            yield ""
            yield f"### {name}, {'LoRA' if is_lora else 'full'}"
            yield ""
            yield from _table(chosen)
            yield ""
            yield from _times(chosen)


def _table(plans: list[dict[str, Any]]) -> Iterator[str]:
    heads = ["GPUs", "mode", "weights", "gradients", "optimiser", "activations", "head", "buffers"]
    heads += ["optimiser's step", "total", "fits", "total, not recomputed", "fits"]
    yield f"| {' | '.join(heads)} |"
    yield f"|---:|---|{'---:|' * (len(heads) - 2)}"
    for plan in plans:
        for each in plan["modes"]:
            memory = Footprint(**each["memory"])
            parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
            parts += (memory.head, memory.engine, memory.step, each["total"])
            cells = [str(each["num_gpus"]), f"`{each['mode']}`", *map(gib, parts)]
            cells += [_word(each["fits"]), gib(each["total_otherwise"])]
            cells += [_word(each["fits_otherwise"])]
            yield f"| {' | '.join(cells)} |"


def _word(fits: bool) -> str:
    return "yes" if fits else "**no**"


def _times(plans: list[dict[str, Any]]) -> Iterator[str]:
    counts = plans[0]["counts"]
    yield f"{counts['trained']:,} weights are trained, {counts['frozen']:,} are frozen."
    for plan in plans:
        sent = ", ".join(
            f"`{each['mode']}` {gib(each['bytes_sent'])}"
            for each in plan["modes"]
            if each["bytes_sent"]
        )
        host = max((each["memory"]["host"] for each in plan["modes"]), default=0)
        num = plan["hardware"]["num_gpus"]
        of_gpus = f"{num} GPU" if num == 1 else f"{num} GPUs"
        yield (
            f"- **{of_gpus}**: a step takes {plan['seconds_per_step']:.2g} s, the reference cache "
            f"{clock(plan['seconds_of_cache'])} per 10,000 records (both assumed, see above)."
            + (f" GiB that a GPU sends in a step: {sent}." if sent else "")
            + (
                f" `zero3_offload` keeps {gib(host)} GiB per GPU in the host's memory."
                if host
                else ""
            )
        )


def make_cases(measured: Mapping[str, float]) -> list[dict[str, Any]]:
    """What was measured beside what is predicted for it, in MiB."""
    found = []
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            predicted = predict(case, save_shape(case.size, Path(folder)))
        found.append(
            {
                "name": case.name,
                "measured": measured[case.name],
                "total": round(predicted.total / MIB, 1),
                "predicted": {k: round(v / MIB, 1) for k, v in asdict(predicted).items()},
            }
        )
    return found


def main() -> None:
    """Predict and plan anew, and write both files."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results["cases"] = make_cases(results["measured"])
    results["plans"] = make_plans()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
