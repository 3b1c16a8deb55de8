"""Reductions that look only where a mask is True."""

from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(values: Float[Tensor, " G *_"], mask: Bool[Tensor, " G *_"]) -> Float[Tensor, " G"]:
    """Sum of each group's values where the mask is True; 0 where it is True nowhere."""
    return values.masked_fill(~mask, 0.0).flatten(start_dim=1).sum(dim=1)


def masked_mean(values: Float[Tensor, " G *_"], mask: Bool[Tensor, " G *_"]) -> Float[Tensor, " G"]:
    """Mean of each group's values where the mask is True; 0 where it is True nowhere."""
    num_true = mask.flatten(start_dim=1).sum(dim=1)
    return masked_sum(values, mask) / num_true.clamp(min=1)
