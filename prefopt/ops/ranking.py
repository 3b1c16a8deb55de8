"""What exchanging two responses would change in a ranking by a model's values."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def discount_gaps(
    values: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
) -> Float[Tensor, "G K K"]:
    """|1/log(1 + rank_i) - 1/log(1 + rank_j)| at [g, i, j], with ranks 1, 2, ... by falling value.

    Tied responses share the mean discount of the ranks that they occupy together. The gap between
    two of them is its mean over all orders in which they could stand: it is above 0, and no tie is
    broken by the slot. Entries of unused slots are arbitrary but finite.
    """
    values = values.detach().masked_fill(~where, -torch.inf)
    is_tied = values.unsqueeze(2) == values.unsqueeze(1)
    num_above = (values.unsqueeze(2) < values.unsqueeze(1)).sum(dim=2).unsqueeze(2)
    num_tied = is_tied.sum(dim=2).unsqueeze(2)

    ranks = torch.arange(1, values.shape[1] + 1, device=values.device)
    # The k-th of the ranks that a response may hold, k = 1 to num_tied.
    k = ranks - num_above
    discounts = 1 / torch.log1p(ranks.to(values.dtype))
    discounts = discounts.masked_fill((k < 1) | (k > num_tied), 0.0)

    mean = discounts.sum(dim=2) / num_tied.squeeze(2)
    # The k-th is the larger one in (num_tied - k) pairs of ranks and the smaller one in (k - 1).
    sum_of_gaps = (discounts * (num_tied + 1 - 2 * k)).sum(dim=2, keepdim=True)
    num_pairs = (num_tied * (num_tied - 1) / 2).clamp(min=1)
    between = (mean.unsqueeze(2) - mean.unsqueeze(1)).abs()
    is_other = ~torch.eye(values.shape[1], dtype=torch.bool, device=values.device)
    return torch.where(is_tied & is_other, (sum_of_gaps / num_pairs).to(values.dtype), between)
