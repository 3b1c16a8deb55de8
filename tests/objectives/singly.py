"""What losses are made of, in plain Python: one group and one response at a time."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prefopt.types import ObjectiveInputs


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    """-log sigmoid(-x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def slots(inputs: ObjectiveInputs, g: int) -> list[int]:
    return [k for k, used in enumerate(inputs.where[g].tolist()) if used]


def labelled(inputs: ObjectiveInputs, g: int, label: int) -> list[int]:
    return [k for k in slots(inputs, g) if inputs.scores[g, k].item() == label]


def preferred_pairs(inputs: ObjectiveInputs, g: int) -> list[tuple[int, int]]:
    """(winner, loser) of each pair of different scores."""
    scores = inputs.scores[g].tolist()
    used = slots(inputs, g)
    return [(w, l_) for w in used for l_ in used if scores[w] > scores[l_]]


def logp(inputs: ObjectiveInputs, g: int, k: int) -> float:
    return inputs.policy_logps[g, k].item()


def log_ratio(inputs: ObjectiveInputs, g: int, k: int) -> float:
    return (inputs.policy_logps[g, k] - inputs.reference_logps[g, k]).item()


def length(inputs: ObjectiveInputs, g: int, k: int) -> int:
    return int(inputs.num_tokens[g, k])


def mean_logp(inputs: ObjectiveInputs, g: int, k: int) -> float:
    return logp(inputs, g, k) / length(inputs, g, k)


def mean(values: Sequence[float]) -> float:
    """0 for no values."""
    return sum(values) / max(1, len(values))


def per_group(inputs: ObjectiveInputs, of: Callable[[int], float]) -> Tensor:
    """[G] of a function of the group's index."""
    values = [of(g) for g in range(inputs.where.shape[0])]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def mean_over_pairs(inputs: ObjectiveInputs, cost: Callable[[int, int, int], float]) -> Tensor:
    """[G] of the mean cost(g, winner, loser) of the preferred pairs, 0 without such."""
    return per_group(
        inputs, lambda g: mean([cost(g, w, l_) for w, l_ in preferred_pairs(inputs, g)])
    )


def gradient_over_pairs(
    inputs: ObjectiveInputs, slopes: Callable[[int, int, int], tuple[float, float]]
) -> Tensor:
    """[G K] from the slopes (c_w, c_l) of the cost of each preferred pair."""
    gradient = torch.zeros_like(inputs.policy_logps.detach())
    for g in range(inputs.where.shape[0]):
        pairs = preferred_pairs(inputs, g)
        for w, l_ in pairs:
            c_w, c_l = slopes(g, w, l_)
            gradient[g, w] += c_w / len(pairs)
            gradient[g, l_] += c_l / len(pairs)
    return gradient
