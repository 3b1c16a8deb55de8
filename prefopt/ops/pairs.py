"""Pairs of responses of one group: a pair is a list of two, so pairwise losses serve lists."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def pairwise_differences(values: Float[Tensor, "G K"]) -> Float[Tensor, "G K K"]:
    """values_i - values_j at [g, i, j]."""
    return values.unsqueeze(2) - values.unsqueeze(1)


def preferred_pairs(
    scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
) -> Bool[Tensor, "G K K"]:
    """True at [g, i, j] where both are responses and score_i > score_j: i is preferred to j."""
    both = where.unsqueeze(2) & where.unsqueeze(1)
    return both & (scores.unsqueeze(2) > scores.unsqueeze(1))


def best_response(scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> Bool[Tensor, "G K"]:
    """True where no other response of the group scores higher; all True slots share the top."""
    top = scores.masked_fill(~where, -torch.inf).amax(dim=1, keepdim=True)
    return where & (scores == top)


def preferred_responses(
    scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
) -> Bool[Tensor, "G K"]:
    """True where a response scores above another one of its group.

    A response alone in its group is compared with 0, the score of an undesired one.
    """
    above_another = preferred_pairs(scores, where).any(dim=2)
    alone = where.sum(dim=1, keepdim=True) == 1
    return where & torch.where(alone, scores > 0, above_another)
