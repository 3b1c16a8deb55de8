"""From seconds to what is reported: ratios with intervals, rates, shares of what a machine can."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from benchmark_workloads import Group

NUM_RESAMPLES = 10_000
# Beyond this the machine was busy with something else.
MAX_ROOF_DRIFT = 0.05
# Fewer say nothing of their spread.
LEAST_REPEATS = 3
ROWS_OF_ROOF = 2048


def ratio(slow: Sequence[float], fast: Sequence[float], seed: int = 0) -> dict[str, float]:
    """How many times as fast: the ratio of medians, and 95 % of its bootstrap distribution.

    Args:
        slow: seconds of one arm, by repeat.
        fast: seconds of the other in the same repeats, which are drawn together.
        seed: of the bootstrap.
    """
    pairs = list(zip(slow, fast, strict=True))
    generator = random.Random(seed)

    def of(drawn: Sequence[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in drawn) / statistics.median(b for _, b in drawn)

    resampled = sorted(of(generator.choices(pairs, k=len(pairs))) for _ in range(NUM_RESAMPLES))
    low, high = (resampled[round(q * (NUM_RESAMPLES - 1))] for q in (0.025, 0.975))
    return {"ratio": of(pairs), "low": low, "high": high}


def rates(
    totals: Sequence[float], groups: Sequence[Group], operations: float, peak: float
) -> dict[str, float]:
    """What an arm does in a second.

    Args:
        totals: seconds of an epoch, by repeat.
        groups: of the epoch.
        operations: that the epoch needs, whoever trains it.
        peak: operations per second that the machine can do.
    """
    seconds = statistics.median(totals)
    return {
        "seconds_of_epoch": seconds,
        "groups_per_second": len(groups) / seconds,
        "useful_tokens_per_second": sum(group.num_unique_tokens for group in groups) / seconds,
        "share_of_roof": operations / seconds / peak,
    }


def cache_numbers(reference_seconds: float, live: float, cached: float) -> dict[str, float | None]:
    """What the reference's one-off pass costs, in epochs with it; and after how many it has paid.

    In the same unit, what a live reference costs in every epoch.

    Args:
        reference_seconds: of the pass over one epoch's groups.
        live: seconds of an epoch with a live reference.
        cached: seconds of an epoch with a cached one.
    """
    saved = live - cached
    return {
        "share_of_epoch": reference_seconds / cached,
        "live_share_of_epoch": saved / cached,
        "break_even_epochs": reference_seconds / saved if saved > 0 else None,
    }


def quiet_repeats(roofs: Sequence[float]) -> list[int]:
    """Repeats before and after which the machine multiplied about equally fast."""
    pairs = enumerate(pairwise(roofs))
    return [i for i, (a, b) in pairs if abs(a - b) <= MAX_ROOF_DRIFT * max(a, b)]


def roof(shapes: Sequence[tuple[int, int]], device: str) -> float:
    """Operations per second of the products of a model's layers, at best of some tries.

    Args:
        shapes: (outputs, inputs) of the layers.
        device: cpu, in float32; or cuda, in bfloat16.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    seconds, operations = 0.0, 0.0
    for (outputs, inputs), count in Counter(shapes).items():
        rows = torch.randn(ROWS_OF_ROOF, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        seconds += count * min(_seconds_of_product(rows, weight) for _ in range(5))
        operations += count * 2.0 * ROWS_OF_ROOF * inputs * outputs
    return operations / seconds


def _seconds_of_product(rows: torch.Tensor, weight: torch.Tensor) -> float:
    num_products = 3
    _wait_for(rows)
    began = time.perf_counter()
    for _ in range(num_products):
        torch.nn.functional.linear(rows, weight)
    _wait_for(rows)
    return (time.perf_counter() - began) / num_products


def _wait_for(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def all_ratios(totals: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Every arm over those before it, as `U4/T0`: above 1 where U4 is faster."""
    names = list(totals)
    return {
        f"{fast}/{slow}": ratio(totals[slow], totals[fast])
        for i, fast in enumerate(names)
        for slow in names[:i]
    }
