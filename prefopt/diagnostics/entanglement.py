"""What a step along the gradient of a loss does to the log-probs of a group, to first order.

With the loss gradient sum_j c_j g_j, where g_j is the gradient of the log-prob of response j and
c_j the derivative of the loss by it, a step of gradient descent with learning rate eta changes

    log pi(y_i) by -eta * sum_j c_j <g_i, g_j>.

For a pair, with d_w = -c_w and d_l = c_l, the chosen response rises iff
<g_w, g_l> <= (d_w / d_l) |g_w|^2 and the rejected one falls iff <g_w, g_l> <= (d_l / d_w) |g_l|^2:
the two conditions of gradient entanglement (arXiv 2410.13828, section 3). Here they are multiplied
out, so that they hold for any sign of c. What an optimiser makes of a gradient beyond the learning
rate, such as Adam's scaling, is not looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.ops.pairs import preferred_pairs

CLASSES = ("ideal", "both_fall", "both_rise", "reversed")
"""Chosen up and rejected down; both down; both up; chosen down and rejected up."""


def influence_of(
    gram: Float[Tensor, "K K"], coefficients: Float[Tensor, " K"]
) -> Float[Tensor, "K K"]:
    """At [i, j], <g_i, c_j g_j>: how the loss's way through response j meets response i.

    Args:
        gram: of the log-probs' gradients.
        coefficients: derivative of the loss by each log-prob, as autograd finds it.
    """
    return gram * coefficients


def predicted_changes(influence: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """First-order change of each log-prob per unit of learning rate, in nats."""
    return -influence.sum(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The preferred pairs of one group, P of them, and what a step does to them."""

    chosen: Float[Tensor, " P"]
    """|g_w|."""
    rejected: Float[Tensor, " P"]
    """|g_l|."""
    inner_product: Float[Tensor, " P"]
    """<g_w, g_l>."""
    index: tuple[tuple[int, int], ...]
    """Chosen and rejected response of each."""

    @property
    def cosine(self) -> Float[Tensor, " P"]:
        """Between the two gradients; NaN where one of them is 0."""
        return self.inner_product / (self.chosen * self.rejected)


def pairs_of(
    gram: Float[Tensor, "K K"], scores: Float[Tensor, " K"], where: Bool[Tensor, " K"]
) -> Pairs:
    """All pairs of a group in which one response scores higher than the other.

    Args:
        gram: over all parameters, or those of a part.
        scores: the annotator's numbers.
        where: True where a slot holds a response.
    """
    preferred = preferred_pairs(scores[None], where[None])[0].nonzero()
    chosen, rejected = preferred[:, 0], preferred[:, 1]
    return Pairs(
        chosen=gram[chosen, chosen].sqrt(),
        rejected=gram[rejected, rejected].sqrt(),
        inner_product=gram[chosen, rejected],
        index=tuple((i, j) for i, j in preferred.tolist()),
    )


def broken_conditions(
    influence: Float[Tensor, "K K"], pairs: Pairs
) -> tuple[Bool[Tensor, " P"], Bool[Tensor, " P"]]:
    """Whether a step on each pair alone would lower its chosen, or raise its rejected response."""
    changes = [predicted_changes(influence[list(pair)][:, list(pair)]) for pair in pairs.index]
    found = torch.stack(changes) if changes else influence.new_zeros(0, 2)
    return found[:, 0] < 0, found[:, 1] > 0


def class_of(chosen_change: float, rejected_change: float) -> str | None:
    """One of CLASSES, from the changes of a pair's log-probs; None if either stays as it is."""
    if chosen_change == 0 or rejected_change == 0:
        return None
    if chosen_change > 0:
        return "ideal" if rejected_change < 0 else "both_rise"
    return "both_fall" if rejected_change < 0 else "reversed"


def sums_by(
    of_parameter: Mapping[str, Float[Tensor, "K K"]], key: Mapping[str, str]
) -> dict[str, Float[Tensor, "K K"]]:
    """Grams of groups of parameters.

    Args:
        of_parameter: by the name of the parameter.
        key: which group each name belongs to.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, gram in of_parameter.items():
        groups.setdefault(key[name], []).append(gram)
    return {group: torch.stack(grams).sum(dim=0) for group, grams in groups.items()}
