"""Log-prob gradients of one length within each group, by scaling what the loss wants of each.

Normalised preference optimisation (arXiv 2410.13828, section 6) updates a pair by
theta += eta * C * (g_w / |g_w| - g_l / |g_l|): with both gradients of one length, the chosen
response cannot fall and the rejected one cannot rise, to first order. The paper leaves C open, and
no code of the authors has this. Our reading: the loss keeps its coefficient c_k of each response,
which is multiplied by m / |g_k|, where m is the geometric mean of |g| over the group. For a pair
with |c_w| = |c_l| that is the paper's update with C = |c| m; an update stays about as long as it
was, so that a learning rate keeps its meaning; and lists of any length have it as well.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.data.collate import collate, records_of
from prefopt.diagnostics.gram import GramMeter
from prefopt.types import GroupBatch


class GradientNorms:
    """Lengths of the log-prob gradients of responses, measured before a backward pass."""

    def __init__(self, meter: GramMeter) -> None:
        """Takes what measures the policy, which must be whole on every process."""
        self._meter = meter

    def of(self, batch: GroupBatch) -> Float[Tensor, " R"]:
        """Of the responses of a micro-batch, in their order."""
        device = batch.input_ids.device
        grams = [
            self._meter.measure(collate([record]).to(device)).total for record in records_of(batch)
        ]
        return torch.cat([gram.diagonal().sqrt() for gram in grams])


def factors_of(norms: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """What makes gradients of such lengths all as long as their geometric mean.

    Where one of them is 0, all stay as they are.
    """
    if (norms == 0).any():
        return torch.ones_like(norms)
    return norms.log().mean().exp() / norms
