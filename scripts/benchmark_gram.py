"""Time of a group's Gram against a plain forward and backward pass of the same responses.

Usage: python scripts/benchmark.py gram [--rounds N]

plain   packed rows without sharing, log-prob head, gradients of all parameters of the sum
gram    what prefopt.diagnostics does
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_models import model_config, save_model
from benchmark_workloads import load_workloads, write_rows
from transformers import AutoModelForCausalLM

from prefopt.commands.train import train
from prefopt.config import recipe_of
from prefopt.data.collate import collate
from prefopt.diagnostics.gram import GramMeter
from prefopt.models.head import install_logp_head
from prefopt.models.layout import token_logps
from prefopt.types import GroupBatch, TokenizedRecord

# Relative to the lengths of gradients, in float32.
TOLERANCE = 1e-4
BARS = {"must": 2.0, "aim": 1.3, "share of training": 0.02}
NUM_STEPS = 4


def gram(rounds: int, *, num_groups: int = 8, size: str = "7M") -> dict[str, Any]:
    """Ratios of time, medians over interleaved rounds of the same groups.

    Args:
        rounds: how often each group is timed in turn, after one that is not counted.
        num_groups: of each workload.
        size: of the model.

    Raises:
        AssertionError: if the sum over a Gram is not the squared length of the plain gradient.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(size))
    install_logp_head(model, "packed")
    meter = GramMeter(model)
    found = {}
    for workload in load_workloads():
        batches = [_batch(group, model.config.vocab_size) for group in workload.groups[:num_groups]]
        for batch in batches:
            _check(meter, batch)
        times: dict[str, list[float]] = {"plain": [], "gram": []}
        for _ in range(rounds):
            times["plain"].append(sum(_plain_seconds(model, batch) for batch in batches))
            times["gram"].append(sum(_gram_seconds(meter, batch) for batch in batches))
        ratios = [g / p for g, p in zip(times["gram"], times["plain"], strict=True)]
        found[workload.name] = {
            "plain_ms": 1e3 * statistics.median(times["plain"]) / num_groups,
            "gram_ms": 1e3 * statistics.median(times["gram"]) / num_groups,
            "ratio": statistics.median(ratios),
        }
    return {
        "threads": torch.get_num_threads(),
        "model": size,
        "workloads": found,
        "share_of_training": share_of_training(size=size),
        "bars": BARS,
    }


def share_of_training(
    workload: str = "hh", *, size: str = "7M", every: int = 50, groups: int = 8
) -> float:
    """Which part of the time of training `diagnostics:` takes, from a run of a few steps.

    It measures twice in that run, at the first step and at the last.

    Args:
        workload: whose lengths are trained on, 32 groups a step.
        size: of the model.
        every: how often a longer run would measure.
        groups: how many it would look at.
    """
    (work,) = load_workloads([workload])
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(size, folder / "model", torch.float32)
        write_rows(work, model_config(size).vocab_size, folder / "rows.jsonl")
        recipe = recipe_of(
            {
                "model": {"path": str(folder / "model")},
                "data": {
                    "sources": [{"path": str(folder / "rows.jsonl")}],
                    "cache_dir": str(folder / "cache"),
                },
                "objective": {"name": "dpo"},
                "diagnostics": {"every": NUM_STEPS, "groups": groups},
                "training": {
                    "output_dir": str(folder / "run"),
                    "groups_per_step": 32,
                    "max_steps": NUM_STEPS,
                    "save_strategy": "no",
                    "use_cpu": True,
                },
            }
        )
        history = train(recipe).state.log_history
    seconds = max(line.get("diagnostics/seconds", 0.0) for line in history)
    (runtime,) = (line["train_runtime"] for line in history if "train_runtime" in line)
    step = (runtime - seconds) / NUM_STEPS
    return seconds / 2 / (every * step)


def _batch(group: Any, vocabulary: int) -> GroupBatch:
    def tokens(num: int) -> torch.Tensor:
        return torch.randint(3, vocabulary, (num,))

    return collate(
        [
            TokenizedRecord(
                id="r",
                prompt_ids=tokens(group.prompt),
                response_ids=tuple(tokens(num) for num in group.responses),
                scores=tuple(float(k) for k in range(len(group.responses))),
            )
        ]
    )


def _check(meter: GramMeter, batch: GroupBatch) -> None:
    total = token_logps(meter.model, batch).sum()
    parameters = [p for p in meter.model.parameters() if p.requires_grad]
    expected = sum(g.double().square().sum() for g in torch.autograd.grad(total, parameters))
    whole = meter.measure(batch).total
    assert abs(whole.sum() - expected) <= TOLERANCE * whole.diagonal().sum(), "Gram is wrong"


def _plain_seconds(model: torch.nn.Module, batch: GroupBatch) -> float:
    start = time.perf_counter()
    token_logps(model, batch).sum().backward()
    taken = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return taken


def _gram_seconds(meter: GramMeter, batch: GroupBatch) -> float:
    start = time.perf_counter()
    meter.measure(batch)
    return time.perf_counter() - start
