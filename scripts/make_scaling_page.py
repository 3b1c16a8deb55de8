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
from transformers import LlamaConfig

from prefopt.commands.plan_numbers import RESERVE, Hardware, Plan, make_plan
from prefopt.commands.plan_report import gib
from prefopt.config import Recipe
from prefopt.train.footprint import MODES, Footprint
from prefopt.train.progress import clock

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "scaling.json"
PAGE = ROOT / "docs" / "scaling.md"
GPUS = (1, 8, 16)
DEFAULTS = {"gpu_memory": 80.0, "peak_tflops": 989.4, "utilization": 0.35}
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

_HEAD = """# Past one machine

`prefopt plan RECIPE --gpus N` says before a run what it would take: memory of a GPU under each mode,
the time of a step and of the reference cache, and what GPUs send each other. It reads the model's
configuration and no weights; where the data is on this machine it reads its lengths, from the token
cache or from a sample. `--mode` shows one mode, `--gpu-memory`, `--peak-tflops` and `--utilization`
say what the GPUs are, `--json` is for scripts.

This page is written by `python scripts/make_scaling_page.py` from docs/scaling.json.
**Nothing on it was run on a GPU.** Memory was checked on CPUs, see below; times rest on an assumed
share of a data sheet's number.

## Which engine serves where

| where | what serves | why |
|---|---|---|
| training, one GPU | `single`: transformers and accelerate as they are | nothing to share |
| training, a model and its optimiser fit a GPU | `ddp` | gradients are sent once a step, nothing else |
| training, weights fit, optimiser state does not | `zero1`, `zero2` (DeepSpeed) | states, then gradients are split |
| training, weights do not fit | `zero3` (DeepSpeed) or `fsdp2` (PyTorch) | weights are split and gathered layer by layer |
| training, still too large, or one GPU | `zero3_offload` | weights and states lie in the host's memory; slow |
| reference log-probs | the same modes: `prefopt precompute` under `accelerate launch` | a pass without gradient, once |
| generation of candidates and answers | vLLM or SGLang behind an OpenAI-compatible endpoint | batching and paged key-value caches are their trade; a trainer's forward pass is no server |

An adapter is written as peft does, `prefopt merge` makes it one model with its base; either is what
those servers load.

## What is counted

- **weights, gradients, optimiser state**: counted on the model itself, built without memory. AdamW
  keeps two numbers per trained weight. DDP reduces gradients in a copy of them. Under DeepSpeed with
  bf16 a GPU has bfloat16 weights and its part of float32 masters and states. FSDP2 splits float32
  weights.
- **activations**: the model's own code, with its attention and its log-prob head, is run on tensors
  without memory, forward and backward, and what lives at once is added up. The micro-batch is a flat
  row of `tokens_per_micro_batch` tokens, or a GPU's share of the step where that is smaller.
- **log-prob head**: a tile of logits, and the gradients that it adds up in float32.
- **buffers**: what engines hold by their defaults: DeepSpeed reduces 500,000,000 numbers at a time
  and keeps up to 1,000,000,000 gathered weights; FSDP2 gathers two layers and the projection.
- **FSDP2 with several micro-batches** keeps whole gradients until the last one. A budget that lets a
  GPU's share of a step be one micro-batch avoids it.
- **reserve**: {reserve} GiB for CUDA, NCCL and what the allocator cannot give out. A guess.
- **time**: floating-point operations on prompts that are there once, over {utilization:.0%} of
  {peak_tflops:g} TFLOP/s per GPU: the peak is an H100's in dense bfloat16 by its data sheet, and
  torchtitan reports 33 to 39 % of it for Llama 3.1 8B on 8 H100 with FSDP. Communication, the
  optimiser and offloading are not in it.

"""


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


def make_plans() -> list[dict[str, Any]]:
    """What is planned for, in plain types; the folder of the model is left out."""
    found = []
    for name, shape in SHAPES.items():
        for is_lora in (False, True):
            for num_gpus in GPUS:
                with tempfile.TemporaryDirectory() as folder:
                    config = LlamaConfig(**_LLAMA, **shape, max_position_embeddings=131072)
                    config.save_pretrained(folder)
                    modes = _ON_ONE_GPU if num_gpus == 1 else MODES[1:]
                    hardware = Hardware(num_gpus=num_gpus, **DEFAULTS)
                    plan = make_plan(recipe(Path(folder), is_lora=is_lora), modes, hardware)
                found.append({"name": name, "is_lora": is_lora, **_plain(plan)})
    return found


def _plain(plan: Plan) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    return {key: value for key, value in content.items() if key not in ("model", "notes")}


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    head = _HEAD.format(reserve=gib(RESERVE), **DEFAULTS)
    return "\n".join([head.rstrip(), "", *_measured(results), "", *_planned(results), ""])


def _measured(results: Mapping[str, Any]) -> Iterator[str]:
    cases = results["cases"]
    off = [each["total"] / each["measured"] - 1 for each in cases]
    within = sum(abs(each) <= 0.15 for each in off)
    versions = results["versions"]
    named = ("torch", "transformers", "accelerate", "peft", "deepspeed")
    installed = ", ".join(f"{name} {versions[name]}" for name in named if name in versions)
    yield "## Predicted and measured"
    yield ""
    yield (
        f"`python scripts/measure_memory.py` on {results['machine']}, one thread a process; "
        f"{installed}. Random Llama models, simpo, fused AdamW, two micro-batches a step on each of "
        "one or two processes (gloo). Measured is the most that a process has resident in its second "
        "step, above what it had before it loaded anything; of several processes, the one with most. "
        "Predicted is the same arithmetic as `prefopt plan`, without the reserve, and with a bucket "
        "of DeepSpeed no larger than what is written into it."
    )
    yield ""
    yield (
        f"{within} of {len(cases)} are within 15 %; the prediction is off by {min(off):+.0%} to "
        f"{max(off):+.0%}, in the middle by {statistics.median(off):+.0%}. In MiB:"
    )
    yield ""
    names = list(cases[0]["predicted"])
    shown = [name for name in names if name not in ("reference", "host")]
    yield f"| run | {' | '.join(shown)} | predicted | measured | off |"
    yield f"|---|{'---:|' * (len(shown) + 3)}"
    for each, deviation in zip(cases, off, strict=True):
        parts = " | ".join(f"{each['predicted'][name]:,.0f}" for name in shown)
        yield (
            f"| {each['name']} | {parts} | {each['total']:,.0f} | {each['measured']:,.0f} | "
            f"{deviation:+.0%} |"
        )
    yield ""
    yield from results.get("remarks", [])


def _planned(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## A 1B and an 8B model on GPUs of 80 GiB"
    yield ""
    yield (
        "dpo on 128 pairs a step as long as UltraFeedback's on average (185 prompt tokens, two "
        "responses of 305), 16,384 tokens a micro-batch, bf16, gradient checkpointing. Full: float32 "
        "weights. LoRA: rank 16 on all linear layers, on bfloat16 weights. GiB per GPU; total is with "
        "the reserve, and the last two columns are without gradient checkpointing."
    )
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
            + (f" `zero3_offload` keeps {gib(host)} GiB per GPU in the host's memory." if host else "")
        )


def main() -> None:
    """Plan anew, and write both files."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results["plans"] = make_plans()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
