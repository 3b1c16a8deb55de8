"""What losses over pairs come to in plain Python loops, to compare objectives with."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.objectives import Objective
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, losses_and_gradient


@dataclass(frozen=True)
class Response:
    """One used slot, in plain numbers."""

    slot: int
    logp: float
    reference: float
    score: float

    @property
    def log_ratio(self) -> float:
        return self.logp - self.reference


Cost = Callable[[Response, Response], float]
Slopes = Callable[[Response, Response], tuple[float, float]]


def responses(inputs: ObjectiveInputs) -> Iterator[list[Response]]:
    """The used slots of each group; without a reference its log-probs count as 0."""
    reference = inputs.reference_logps
    for g in range(inputs.where.shape[0]):
        yield [
            Response(
                slot=k,
                logp=inputs.policy_logps[g, k].item(),
                reference=0.0 if reference is None else reference[g, k].item(),
                score=inputs.scores[g, k].item(),
            )
            for k in range(inputs.where.shape[1])
            if inputs.where[g, k]
        ]


def pairs_of(group: list[Response]) -> list[tuple[Response, Response]]:
    """(preferred, rejected), for all that do not tie."""
    return [(w, r) for w in group for r in group if w.score > r.score]


def mean_over_pairs(inputs: ObjectiveInputs, cost: Cost) -> Tensor:
    """Mean of cost(preferred, rejected) over the preferred pairs of each group; 0 without any."""
    costs = [[cost(*pair) for pair in pairs_of(group)] for group in responses(inputs)]
    means = [sum(each) / max(len(each), 1) for each in costs]
    return torch.tensor(means, dtype=inputs.policy_logps.dtype)


def gradient_over_pairs(inputs: ObjectiveInputs, slopes: Slopes) -> Tensor:
    """The same for d cost / d logp of (preferred, rejected)."""
    gradient = torch.zeros_like(inputs.policy_logps)
    for g, group in enumerate(responses(inputs)):
        pairs = pairs_of(group)
        for pair in pairs:
            for response, slope in zip(pair, slopes(*pair), strict=True):
                gradient[g, response.slot] += slope / len(pairs)
    return gradient.detach()


def assert_is_the_mean_over_pairs(
    objective: Objective, num_slots: int, cost: Cost, slopes: Slopes
) -> None:
    """Losses and gradients of ragged random groups of up to K responses, ties among them."""
    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    torch.testing.assert_close(losses, mean_over_pairs(inputs, cost), rtol=1e-10, atol=1e-12)
    expected = gradient_over_pairs(inputs, slopes)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
