"""Time of the log-prob head, forward and backward, against what it replaces.

Usage: python scripts/benchmark_head.py [--rounds N]

With a frozen projection:
naive               log_softmax of all logits, by autograd
checkpoint          tiles whose logits torch's checkpoint computes again in the backward pass
recompute           the same by hand, in place
unit                what prefopt does: gradients are there after the forward pass
With one that is trained:
checkpoint-trained  as above
recompute-trained   what prefopt does
groupwise           what prefopt does where the loss is a sum over groups
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefopt.ops.groupwise import groupwise_loss
from prefopt.ops.head_logps import _with_recomputed_logits, tiled_target_logps
from prefopt.ops.logps import target_logps, tokens_per_tile
from prefopt.ops.tiled_head import LogitSettings

NUM_TOKENS, WIDTH, VOCABULARY, NUM_GROUPS = 512, 896, 32768, 4
# Relative, in float32: rounding of sums over the vocabulary.
TOLERANCE = 1e-5
BAR = 1.2
Variant = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="How often all is timed in turn.")
    result = head(parser.parse_args().rounds)
    for name, milliseconds in result["milliseconds"].items():
        print(f"{name:<20}{milliseconds:>9.1f} ms   error {result['errors'][name]:.1e}")
    for name, ratio in result["ratios"].items():
        print(f"{name:<40}{ratio:>6.2f}")


def head(rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Milliseconds of each variant, medians of interleaved rounds, and their ratios.

    Args:
        rounds: how often all variants are timed in turn, after one round that is not counted.
        device: where tensors lie.

    Raises:
        AssertionError: if a gradient is not that of log_softmax in float64.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator).to(device)
    weight = (0.02 * torch.randn(VOCABULARY, WIDTH, generator=generator)).to(device)
    targets = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator).to(device)
    factors = torch.randn(NUM_TOKENS, generator=generator).to(device)
    data = (hidden, weight, targets, factors)
    exact = _gradients(_naive, hidden.double(), weight.double(), targets, factors.double())
    errors: dict[str, float] = {}
    for name, (variant, is_trained) in VARIANTS.items():
        found = _gradients(variant, *data, is_trained=is_trained)
        errors[name] = max(
            ((ours - theirs).norm() / theirs.norm()).item()
            for ours, theirs in zip(found, exact, strict=False)
        )
        assert errors[name] <= TOLERANCE, f"{name}: gradients are off by {errors[name]:.1e}"
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, (variant, is_trained) in VARIANTS.items():
            times[name].append(_seconds(variant, data, is_trained))
    milliseconds = {name: 1e3 * statistics.median(each) for name, each in times.items()}
    return {
        "tokens": NUM_TOKENS,
        "width": WIDTH,
        "vocabulary": VOCABULARY,
        "threads": torch.get_num_threads(),
        "errors": errors,
        "milliseconds": milliseconds,
        "ratios": {
            f"{slow} / {fast}": statistics.median(
                one / other for one, other in zip(times[slow], times[fast], strict=True)
            )
            for slow, fast in RATIOS
        },
        "bars": {"recompute / unit": BAR},
    }


def _naive(hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
    return factors @ target_logps(hidden @ weight.t(), targets)


def _checkpointed(hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
    def of_tile(tile: Tensor, their_targets: Tensor) -> Tensor:
        return target_logps(torch.nn.functional.linear(tile, weight), their_targets)

    per_tile = tokens_per_tile(weight.shape[0])
    tiles = zip(hidden.split(per_tile), targets.split(per_tile), strict=True)
    logps = [
        checkpoint(of_tile, *tile, use_reentrant=False, preserve_rng_state=False) for tile in tiles
    ]
    return factors @ torch.cat(logps)


def _recomputed(hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
    per_tile = tokens_per_tile(weight.shape[0])
    settings = LogitSettings.of(hidden, scale=1.0, softcap=None, num_tokens_per_tile=per_tile)
    return factors @ _with_recomputed_logits(hidden, weight, None, targets, settings)


def _ours(hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
    per_tile = tokens_per_tile(weight.shape[0])
    return factors @ tiled_target_logps(hidden, targets, weight, None, num_tokens_per_tile=per_tile)


def _groupwise(hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
    each = NUM_TOKENS // NUM_GROUPS
    logps, scalar = groupwise_loss(
        hidden,
        targets,
        weight,
        None,
        num_tokens_per_group=(each,) * NUM_GROUPS,
        coefficients=lambda start, stop, logps: factors[start * each : stop * each],
        num_tokens_per_tile=tokens_per_tile(weight.shape[0]),
    )
    return factors @ logps + scalar


VARIANTS: dict[str, tuple[Variant, bool]] = {
    "naive": (_naive, False),
    "checkpoint": (_checkpointed, False),
    "recompute": (_recomputed, False),
    "unit": (_ours, False),
    "checkpoint-trained": (_checkpointed, True),
    "recompute-trained": (_ours, True),
    "groupwise": (_groupwise, True),
}
RATIOS = [
    ("naive", "unit"),
    ("checkpoint", "unit"),
    ("recompute", "unit"),
    ("checkpoint-trained", "recompute-trained"),
    ("checkpoint-trained", "groupwise"),
    ("recompute-trained", "groupwise"),
]


def _gradients(
    variant: Variant,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    factors: Tensor,
    *,
    is_trained: bool = True,
) -> list[Tensor]:
    """By hidden states and, if it is trained, the projection."""
    hidden = hidden.detach().requires_grad_()
    weight = weight.detach().requires_grad_(is_trained)
    variant(hidden, weight, targets, factors).backward()
    return [each.grad for each in (hidden, weight) if each.grad is not None]


def _seconds(variant: Variant, data: tuple[Tensor, ...], is_trained: bool) -> float:
    is_cuda = data[0].is_cuda
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    _gradients(variant, *data, is_trained=is_trained)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
