"""Quality where methods went equally far from the start.

KL(policy || start) is comparable across objectives, and beta is not. Quality is taken to be linear
in sqrt(KL) between policies that were measured, and the start itself is one of them: it has KL 0
and wins half of the time. The scale of sqrt(KL) is that of Gao, Schulman and Hilton, Scaling Laws
for Reward Model Overoptimization, 2022, arxiv.org/abs/2210.10760, section 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIN_OF_START = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One trained policy."""

    seed: int
    kl: float
    """KL(policy || start) per answer, in nats; an estimate below 0 counts as 0."""
    wins: Mapping[str, float]
    """Prompt -> probability of a win against the start, in [0, 1]."""


def common_kl(policies: Mapping[str, Sequence[Measured]]) -> float | None:
    """The largest KL that every method reaches with each of its seeds; None if that is 0."""
    if not policies or not all(policies.values()):
        return None
    reached = [
        max(policy.kl for policy in measured if policy.seed == seed)
        for measured in policies.values()
        for seed in {policy.seed for policy in measured}
    ]
    least = min(reached)
    return least if least > 0 else None


def wins_at(measured: Sequence[Measured], kl: float) -> list[dict[str, float]]:
    """Per seed, wins by prompt at a KL that the seed's policies reach.

    Prompts that some policy has no win for are left out.
    """
    found = []
    for seed in sorted({policy.seed for policy in measured}):
        policies = sorted(
            (policy for policy in measured if policy.seed == seed), key=lambda policy: policy.kl
        )
        above = next(policy for policy in policies if policy.kl >= kl)
        below = [policy for policy in policies if policy.kl < kl]
        low = max(below[-1].kl, 0.0) if below else 0.0
        low, middle, high = math.sqrt(low), math.sqrt(kl), math.sqrt(above.kl)
        share = (middle - low) / (high - low) if high > low else 1.0
        wins = {}
        for prompt, win in above.wins.items():
            before = below[-1].wins.get(prompt) if below else WIN_OF_START
            if before is not None:
                wins[prompt] = before + share * (win - before)
        found.append(wins)
    return found
