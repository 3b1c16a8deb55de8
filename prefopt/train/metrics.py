"""Numbers of a step: summed on the device, reduced over ranks once, averaged over a log window."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.ops.pairs import best_response, pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


def group_metrics(
    inputs: ObjectiveInputs, output: ObjectiveOutput
) -> dict[str, tuple[Float[Tensor, " G"], Bool[Tensor, " G"]]]:
    """Values per group, and where they mean something; names are those of TRL.

    `chosen` is the best-scored response and `rejected` the worst-scored one; responses that share a
    place are averaged. `accuracies` is the share of preferred pairs that rewards put in order. An
    objective's own metric means something where the group is counted and the metric is not NaN.
    """
    scores, where, rewards = inputs.scores, inputs.where, output.rewards
    logps = inputs.policy_logps.detach()
    pairs = preferred_pairs(scores, where)
    ranked = pairs.flatten(start_dim=1).any(dim=1)
    alone = where.sum(dim=1) == 1
    best, worst = best_response(scores, where), best_response(-scores, where)
    chosen, rejected = masked_mean(rewards, best), masked_mean(rewards, worst)
    in_order = (pairwise_differences(rewards) > 0).to(rewards.dtype)
    metrics = {
        "rewards/chosen": (chosen, ranked),
        "rewards/rejected": (rejected, ranked),
        "rewards/margins": (chosen - rejected, ranked),
        "rewards/accuracies": (masked_mean(in_order, pairs), ranked),
        "rewards/mean": (masked_mean(rewards, where), alone),
        "logps/chosen": (masked_mean(logps, best), ranked),
        "logps/rejected": (masked_mean(logps, worst), ranked),
        "logps/mean": (masked_mean(logps, where), alone),
    }
    own = {name: (value, output.counted & ~value.isnan()) for name, value in output.metrics.items()}
    return metrics | own


@dataclass(slots=True)
class StepSums:
    """Sums over the micro-batches of one step or one evaluation, on the device until `read`."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Add to the sum of that name, in float64."""
        value = value.detach().double()
        self.values[name] = self.values[name] + value if name in self.values else value

    def add_groups(
        self, metrics: Mapping[str, tuple[Tensor, Tensor]], *, is_filler: bool = False
    ) -> None:
        """Add group values where they mean something; a filler adds its names and no numbers."""
        for name, (values, where) in metrics.items():
            where = where & (not is_filler)
            self.add(f"{name}:sum", values.masked_fill(~where, 0.0).sum())
            self.add(f"{name}:count", where.sum())

    def pack(self) -> Float[Tensor, " n"]:
        """All sums as one vector, in the order of names, for one reduction over ranks."""
        return torch.stack([self.values[name] for name in sorted(self.values)])

    def read(self, packed: list[float]) -> dict[str, float]:
        """A reduced vector, on the host, by name."""
        return dict(zip(sorted(self.values), packed, strict=True))


@dataclass(slots=True)
class LogWindow:
    """Means since the last log line.

    Its content is part of a checkpoint, so that a resumed run logs the same line as one that was
    never stopped.
    """

    sums: dict[str, float] = field(default_factory=dict)
    total_loss: float = 0.0
    """Sum of the losses of all steps since the run began, of those that were learned from."""
    total_size: float = 0.0
    """The same of their absolute values."""
    num_skipped: int = 0
    """Steps since the run began that were left out, since they were not finite."""
    num_spikes: int = 0
    """Steps since the run began whose loss was far above the ones before."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the last steps, by which spikes are told."""

    def add(self, sums: Mapping[str, float]) -> None:
        """Add one step's sums over all its groups, `loss:sum` among them."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.total_loss += sums["loss:sum"]
        self.total_size += abs(sums["loss:sum"])

    def leave_out(self, num_tokens: float) -> None:
        """Count the tokens of a step that took its time and says nothing."""
        self.sums["num_tokens"] = self.sums.get("num_tokens", 0.0) + num_tokens

    def counts(self) -> dict[str, float]:
        """What has happened since the run began, by name, where anything has."""
        counts = {"skipped_steps": self.num_skipped, "loss_spikes": self.num_spikes}
        return {name: float(count) for name, count in counts.items() if count}

    def drain(self) -> dict[str, float]:
        """Means by name, leaving out what no group defined; the window starts anew."""
        means = means_of(self.sums)
        self.sums = {}
        return means


def means_of(sums: Mapping[str, float]) -> dict[str, float]:
    """name: sum / count, for each name:sum whose name:count is not 0."""
    names = [name.removesuffix(":sum") for name in sums if name.endswith(":sum")]
    return {
        name: sums[f"{name}:sum"] / sums[f"{name}:count"]
        for name in names
        if sums[f"{name}:count"] > 0
    }
