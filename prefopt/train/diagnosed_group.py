"""What was measured of one group, and how bad it is."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from prefopt.diagnostics.entanglement import Pairs, class_of, predicted_changes
from prefopt.train.influence import GroupInfluence
from prefopt.types import GroupBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class DiagnosedGroup:
    """One measured group."""

    number: int
    """Of the record."""
    batch: GroupBatch
    found: GroupInfluence
    pairs: Pairs
    of_part: dict[str, Float[Tensor, "K K"]]
    of_depth: dict[str, Float[Tensor, "K K"]]

    @property
    def influence(self) -> Float[Tensor, "K K"]:
        """What is known to be there."""
        assert self.found.influence is not None
        return self.found.influence

    @property
    def classes(self) -> list[str | None]:
        """What a step on the group does to each pair."""
        changes = predicted_changes(self.influence).tolist()
        return [class_of(changes[chosen], changes[other]) for chosen, other in self.pairs.index]

    @property
    def severities(self) -> list[float]:
        """Of each pair: how far a step on it alone lowers the chosen log-prob.

        In units of what the chosen gradient by itself lifts it: above 0 it falls. The cosine where
        nothing is predicted.
        """
        if self.found.influence is None:
            return [float(each) for each in self.pairs.cosine.nan_to_num(-2.0)]
        influence = self.influence
        own = [(influence[i, i].item(), influence[i, j].item()) for i, j in self.pairs.index]
        return [(lift + pull) / abs(lift) if lift else -1.0 for lift, pull in own]

    @property
    def worst_pair(self) -> int:
        """Number of the pair of the highest severity."""
        severities = self.severities
        return severities.index(max(severities))

    def facts(self, learning_rate: float, realised: list[float] | None) -> dict[str, Any]:
        """Plain numbers for a report.

        Args:
            learning_rate: by which predicted changes are multiplied.
            realised: changes that a step of that rate made, if one was taken.
        """
        found, gram, worst = self.found, self.found.gram.total, self.worst_pair
        sizes = gram.diagonal().sqrt()
        predicted = None
        if found.influence is not None:
            predicted = (learning_rate * predicted_changes(found.influence)).tolist()
        return {
            "id": self.batch.ids[0],
            "scores": self.batch.scores[0].tolist(),
            "num_tokens": self.batch.num_tokens[0].tolist(),
            "gram": gram.tolist(),
            "cosines": (gram / (sizes[:, None] * sizes)).nan_to_num(0.0).tolist(),
            "coefficients": None if found.coefficients is None else found.coefficients.tolist(),
            "predicted": predicted,
            "realised": realised,
            "class": None if found.influence is None else self.classes[worst],
            "cosine": self.pairs.cosine[worst].item(),
            "severity": self.severities[worst],
        }
