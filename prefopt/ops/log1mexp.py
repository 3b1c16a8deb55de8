"""Logs of the probability that something does not happen, from the log of the one that it does."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_LOG_HALF = -math.log(2)


def log1mexp(logp: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """log(1 - e^logp) for logp <= 0, in full precision at both ends.

    A logp above -eps, the dtype's rounding error, counts as -eps: the value stays finite, at
    log(eps), and has no gradient.
    """
    eps = torch.finfo(logp.dtype).eps
    # Each form gets only what it is good for, so that neither puts inf * 0 into the gradient.
    likely = torch.log(-torch.expm1(logp.clamp(min=_LOG_HALF, max=-eps)))
    unlikely = torch.log1p(-torch.exp(logp.clamp(max=_LOG_HALF)))
    return torch.where(logp > _LOG_HALF, likely, unlikely)


def log_odds(logp: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """log(p / (1 - p)) of p = e^logp; its slope 1 / (1 - p) ends at 1 where log1mexp is cut."""
    return logp - log1mexp(logp)
