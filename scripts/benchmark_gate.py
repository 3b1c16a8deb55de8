"""The gate: no speed of an arm that computes something else than the first one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from benchmark_arms import Arm, Evidence
from benchmark_workloads import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far an arm may be from the first one."""

    logps: float
    """Nats, of a whole response."""
    cosine: float
    """Least cosine of the gradients of the first step."""
    relative: float
    """Of losses and gradient norms."""


FLOAT32 = Tolerance(logps=1e-4, cosine=0.9999, relative=1e-3)
# About 1e-2 nats a token, of either sign. A response that does not see its prompt is nats off.
BFLOAT16 = Tolerance(logps=0.3, cosine=0.99, relative=2e-2)
# A loss that stays at log 2 agrees with any other.
LEAST_MOVE = 1e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far two arms are apart."""

    logps: float
    cosine: float
    grad_norm: float
    loss: float


def compare(first: Evidence, other: Evidence) -> Agreement:
    """Of two arms that trained the same small groups from the same weights.

    Raises:
        ValueError: if they did not.
    """
    if first.logps.keys() != other.logps.keys():
        raise ValueError("not the same responses")
    if first.gradient.keys() != other.gradient.keys():
        raise ValueError("not the same trained parameters")
    if len(first.losses) != len(other.losses):
        raise ValueError("not the same number of steps")
    return Agreement(
        logps=_largest([abs(first.logps[name] - other.logps[name]) for name in first.logps]),
        cosine=_cosine(first, other),
        grad_norm=_furthest(first.grad_norms[:1], other.grad_norms[:1]),
        loss=_furthest(first.losses, other.losses),
    )


def objections(first: Evidence, other: Evidence, tolerance: Tolerance) -> list[str]:
    """What speaks against an arm; nothing if it may be timed."""
    try:
        found = compare(first, other)
    except ValueError as error:
        return [str(error)]
    against = []
    # Written so that NaN objects too.
    if not found.logps <= tolerance.logps:
        against.append(f"log-probs differ by {found.logps:.1e} nats")
    if not found.cosine >= tolerance.cosine:
        against.append(f"cosine of the first gradients is {found.cosine:.6f}")
    if not found.grad_norm <= tolerance.relative:
        against.append(f"first gradient norms differ by {found.grad_norm:.1e}")
    if not found.loss <= tolerance.relative:
        against.append(f"losses differ by {found.loss:.1e}")
    if not abs(first.losses[-1] - first.losses[0]) >= LEAST_MOVE:
        against.append("the loss hardly moves, so that nothing is compared")
    return against


def wrong_path(arm: Arm, groups: Sequence[Group], num_tokens: int) -> list[str]:
    """What speaks against an arm that fell back to something else than what it stands for.

    Args:
        arm: of padded rows nothing is known, since padding depends on the split.
        groups: of one step.
        num_tokens: that policy and reference saw in it.
    """
    unique = sum(group.num_unique_tokens for group in groups)
    packed = sum(group.num_packed_tokens for group in groups)
    if arm.layout == "padded":
        return []
    num_models = 1 if arm.is_cached else 2
    expected = num_models * {"shared": unique, "packed": packed}[arm.layout]
    if num_tokens == expected:
        return []
    return [f"a step ran {num_tokens} tokens, not the {expected} of {arm.what!r}"]


def _cosine(first: Evidence, other: Evidence) -> float:
    product, squares, others = (
        math.fsum(torch.dot(a[name].double(), b[name].double()).item() for name in first.gradient)
        for a, b in (
            (first.gradient, other.gradient),
            (first.gradient, first.gradient),
            (other.gradient, other.gradient),
        )
    )
    return product / math.sqrt(squares * others) if squares * others > 0 else math.nan


def _furthest(first: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference."""
    return _largest([abs(a - b) / abs(a) for a, b in zip(first, other, strict=True)])


def _largest(differences: Sequence[float]) -> float:
    """NaN if one is NaN, which Python's max passes over."""
    return torch.tensor(differences, dtype=torch.float64).max().item()
