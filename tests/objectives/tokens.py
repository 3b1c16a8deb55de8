"""Inputs of single tokens, and the contrast of Cringe in plain Python."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from prefopt.types import ObjectiveInputs, TokenInputs

Nested = Sequence[Sequence[Sequence[float]]]


def token_inputs_of(
    policy: Nested,
    scores: Sequence[Sequence[float]],
    *,
    reference: Nested | None = None,
    dtype: torch.dtype = torch.float64,
    **per_token: object,
) -> tuple[Tensor, ObjectiveInputs]:
    """The log-probs of all tokens, with gradient, and the inputs that come from them.

    Args:
        policy: log-probs of tokens, [G][K][tokens of the response].
        scores: [G][K].
        reference: as policy.
        dtype: of all that is not an integer.
        **per_token: further fields of TokenInputs, one value or row per token.
    """
    responses = list(chain.from_iterable(policy))
    lengths = torch.tensor([len(response) for response in responses])
    response = torch.repeat_interleave(torch.arange(len(responses)), lengths)
    shape = (len(scores), len(scores[0]))

    def flat(nested: Nested) -> Tensor:
        rows = chain.from_iterable(nested)
        return torch.tensor(list(chain.from_iterable(rows)), dtype=dtype)

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(len(responses)).index_add(0, response, values).view(shape)

    leaf = flat(policy).requires_grad_()
    reference_logps = None if reference is None else flat(reference)
    inputs = ObjectiveInputs(
        policy_logps=sums(leaf),
        reference_logps=None if reference_logps is None else sums(reference_logps),
        num_tokens=lengths.view(shape),
        scores=torch.tensor(scores, dtype=dtype),
        where=torch.ones(shape, dtype=torch.bool),
        tokens=TokenInputs(
            policy_logps=leaf,
            reference_logps=reference_logps,
            response=response,
            labels=torch.zeros_like(response),
        ),
    )
    return leaf, with_token_fields(inputs, dtype=dtype, **per_token)


def with_token_fields(
    inputs: ObjectiveInputs, *, dtype: torch.dtype = torch.float64, **per_token: object
) -> ObjectiveInputs:
    """The inputs with some fields of their tokens replaced; numbers with a point become `dtype`."""
    # By way of numpy, where a list of numbers has 64 bits each.
    tensors = {
        name: values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
        for name, values in per_token.items()
    }
    typed = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return replace(inputs, tokens=replace(inputs.token_inputs(), **typed))


def tokens_of(inputs: ObjectiveInputs, g: int, k: int) -> list[int]:
    """Indices of the tokens of slot k of group g."""
    slot = g * inputs.where.shape[1] + k
    return [t for t, owner in enumerate(inputs.token_inputs().response.tolist()) if owner == slot]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def contrast(tokens: TokenInputs, t: int, k: int) -> float:
    """softplus(log p(label) - log p(s)) of token t, s drawn from the k likeliest other tokens."""
    label = tokens.labels[t].item()
    pairs = zip(tokens.top_ids[t].tolist(), tokens.top_logps[t].tolist(), strict=True)
    candidates = [logp for i, logp in list(pairs)[: k + 1] if i != label][:k]
    chances = [math.exp(logp - max(candidates)) for logp in candidates]
    left = tokens.noise[t].item() * sum(chances)
    chosen = candidates[-1]
    for logp, chance in zip(candidates, chances, strict=True):
        if left < chance:
            chosen = logp
            break
        left -= chance
    return softplus(tokens.policy_logps[t].item() - chosen)
