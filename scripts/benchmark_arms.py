"""The arms: trl's DPOTrainer and prefopt's own train command, and what one says of itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

BETA, LORA_RANK = 0.1, 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A trainer and how it is set."""

    name: str
    what: str
    trainer: str
    """trl or prefopt."""
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sections of a prefopt recipe."""
    layout: str = "padded"
    """What the policy must be seen to run: shared, packed or padded."""
    is_cached: bool = False
    """Whether no reference may be seen to run."""
    is_tuned: bool = False
    """Of trl: precomputed reference, pairs in the order of their length, no recomputation."""
    pairs_per_micro_batch: int = 8
    """Of trl: its default. A tuned arm tries several."""


ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="T0", what="trl: default settings", trainer="trl"),
        Arm(
            name="T1",
            what="trl, tuned: reference precomputed, sorted by length, best micro-batch, "
            "no recomputation",
            trainer="trl",
            is_tuned=True,
        ),
        Arm(
            name="U0",
            what="prefopt: padded rows, live reference, fused log-prob head",
            trainer="prefopt",
            recipe={"model": {"layout": "padded"}, "reference": {"cache": "off"}},
        ),
        Arm(
            name="U1",
            what="+ packed: no padding",
            trainer="prefopt",
            layout="packed",
            recipe={"model": {"layout": "packed"}, "reference": {"cache": "off"}},
        ),
        Arm(
            name="U2",
            what="+ shared: a prompt once",
            trainer="prefopt",
            layout="shared",
            recipe={"model": {"layout": "shared"}, "reference": {"cache": "off"}},
        ),
        Arm(
            name="U4",
            what="+ cached reference",
            trainer="prefopt",
            layout="shared",
            is_cached=True,
            recipe={"model": {"layout": "shared"}, "reference": {"cache": "always"}},
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What an arm trains."""

    arm: Arm
    model: Path
    rows: Path
    """As `write_rows` wrote them."""
    rows_of_check: Path
    groups_per_step: int
    groups_per_step_of_check: int
    pairs_per_group: int
    folder: Path
    """Its own, for whatever it writes."""
    num_threads: int
    device: str = "cpu"
    is_lora: bool = False
    beta: float = BETA

    @property
    def pairs_per_step(self) -> int:
        """Rows of an optimiser step of trl."""
        return self.groups_per_step * self.pairs_per_group


def divisor_up_to(limit: int, pairs_per_step: int) -> int:
    """The largest micro-batch up to a limit of which whole ones make a step."""
    return next(size for size in range(limit, 0, -1) if pairs_per_step % size == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What an arm computed on a few small groups, from the same weights as all others."""

    logps: dict[str, float]
    """At the start: of each response, named by a hash of its tokens and its prompt's, in nats."""
    gradient: dict[str, Tensor]
    """Of the first step, after clipping; a part of the largest tensors."""
    losses: list[float]
    grad_norms: list[float]
    tokens_per_step: int
    """That policy and reference saw in one step, padding included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What some steps took."""

    seconds: list[float]
    """Of each step."""
    memory: dict[str, float]
    """MiB since the first step; see `memory`."""
    reference_seconds: float
    """Of the one pass of the reference before the first step; 0 where there is none."""
