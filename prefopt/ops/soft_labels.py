"""Scores as a distribution over the responses of a group, and softmax over the used slots."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.ops.pairs import best_response, preferred_pairs

_NEARLY = 1e-3


def masked_log_softmax(
    values: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
) -> Float[Tensor, "G K"]:
    """Log softmax over the responses of each group; 0 in unused slots."""
    is_empty = ~where.any(dim=1, keepdim=True)
    # Nothing but -inf would make NaN of a group without responses.
    values = values.masked_fill(~where, -torch.inf).masked_fill(is_empty, 0.0)
    return values.log_softmax(dim=1).masked_fill(~where, 0.0)


def soft_labels(
    scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"], alpha: float | None
) -> Float[Tensor, "G K"]:
    """softmax(scores / alpha) of each group, 0 in unused slots.

    Without alpha, the limit at 0: all goes to the best response, or to those that share the top.
    """
    if alpha is None:
        best = best_response(scores, where)
        return best.to(scores.dtype) / best.sum(dim=1, keepdim=True).clamp(min=1)
    return masked_log_softmax(scores / alpha, where).exp().masked_fill(~where, 0.0)


def warning_of_hard_labels(
    scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"], alpha: float
) -> str | None:
    """One line if alpha is so small that most soft labels name the best response and no more.

    Groups whose scores are all the same are left out. Waits for the device.
    """
    differ = preferred_pairs(scores, where).flatten(start_dim=1).any(dim=1)
    labels, hard = soft_labels(scores, where, alpha), soft_labels(scores, where, None)
    is_hard = differ & ((labels - hard).abs().amax(dim=1) < _NEARLY)
    num_hard, num_differ = int(is_hard.sum()), int(differ.sum())
    if 2 * num_hard <= num_differ:
        return None
    group = is_hard.tolist().index(True)
    used = where[group]
    example = ", ".join(f"{score:g}" for score in scores[group][used].tolist())
    became = ", ".join(f"{label:.3f}" for label in labels[group][used].tolist())
    return (
        f"alpha = {alpha:g} is small beside the differences of the scores: in {num_hard} of "
        f"{num_differ} groups with different scores the soft labels name the best response and "
        f"nothing else, such as scores ({example}) with labels ({became}). "
        "Raise alpha, or bring the scores to [0, 1] with data.scores: minmax."
    )
