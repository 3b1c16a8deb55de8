"""What unlearning losses share: whom they forget and retain, over what they average, what they log.

A response of score 0 is to be forgotten, one of score 1 to be retained; each counts alone.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.ops.reductions import masked_mean, masked_sum
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term


def forgotten(scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> Bool[Tensor, "G K"]:
    """True where a response is to be forgotten."""
    return where & (scores == 0)


def retained(scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> Bool[Tensor, "G K"]:
    """True where a response is to be retained."""
    return where & (scores == 1)


def mean_over_responses(
    costs: Float[Tensor, "G K"], selected: Bool[Tensor, "G K"], coefficient: float = 1.0
) -> Term:
    """The mean cost of the step's selected responses."""
    return Term(
        losses=masked_sum(costs, selected),
        weight=selected.sum(dim=1).to(costs.dtype),
        coefficient=coefficient,
    )


def mean_over_tokens(
    costs: Float[Tensor, "G K"],
    selected: Bool[Tensor, "G K"],
    num_tokens: Int[Tensor, "G K"],
    coefficient: float = 1.0,
) -> Term:
    """The mean cost per token of the step's selected responses, given their costs in total."""
    return Term(
        losses=masked_sum(costs, selected),
        weight=masked_sum(num_tokens.to(costs.dtype), selected),
        coefficient=coefficient,
    )


def unlearning_output(
    inputs: ObjectiveInputs, terms: Mapping[str, Term], rewards: Float[Tensor, "G K"]
) -> ObjectiveOutput:
    """The output of these terms, with the mean log-prob of a token of either side as metrics."""
    weights = torch.stack([term.weight for term in terms.values()])
    logps = inputs.policy_logps.detach() / inputs.num_tokens.clamp(min=1)
    sides = {
        "mean_logps/forget": forgotten(inputs.scores, inputs.where),
        "mean_logps/retain": retained(inputs.scores, inputs.where),
    }
    return ObjectiveOutput(
        losses=torch.stack([term.coefficient * term.losses for term in terms.values()]).sum(dim=0),
        counted=weights.sum(dim=0) > 0,
        rewards=rewards.detach(),
        metrics={
            name: masked_mean(logps, side).masked_fill(~side.any(dim=1), math.nan)
            for name, side in sides.items()
        },
        terms=terms,
    )


def warning_of_unread(scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
    """What to say to a loss that retains nothing, if there is something to retain."""
    if retained(scores, where).any():
        return "Responses of score 1 are left out: this objective retains nothing."
    return None
