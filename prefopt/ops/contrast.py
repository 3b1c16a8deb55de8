"""Contrast of tokens with likely alternatives to them, as the Cringe losses use it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prefopt.types import TokenInputs


def contrastive_losses(tokens: TokenInputs, *, num_alternatives: int) -> Float[Tensor, " N"]:
    """softplus(log p(token) - log p(alternative)) of each token, in nats.

    The alternative is drawn, with the noise given, from the softmax of the most likely tokens other
    than the token itself. It is arbitrary, though finite, where `top_logps` is not real.

    Args:
        tokens: with top_logps, top_ids and noise; columns beyond the first num_alternatives + 1
            are ignored.
        num_alternatives: how many tokens to draw from, at least 1; with 1 nothing is random, and
            noise need not be there.
    """
    width = num_alternatives + 1
    top_logps = tokens.read("top_logps")[:, :width]
    is_label = tokens.read("top_ids")[:, :width] == tokens.labels.unsqueeze(1)
    # num_alternatives columns are drawn from: all but the label's, or else all but the last.
    is_last = torch.arange(width, device=is_label.device) == num_alternatives
    left_out = torch.where(is_label.any(dim=1, keepdim=True), is_label, is_last)
    chances = top_logps.detach().masked_fill(left_out, -torch.inf).softmax(dim=1)
    cumulative = chances.cumsum(dim=1)
    # The sum may miss 1 by rounding, and a cast may round the noise up to it: stay below the sum.
    is_sure = num_alternatives == 1
    noise = torch.zeros_like(tokens.policy_logps) if is_sure else tokens.read("noise")
    noise = noise.clamp(max=1 - torch.finfo(noise.dtype).eps)
    draws = noise.unsqueeze(1) * cumulative[:, -1:]
    alternatives = (cumulative <= draws).sum(dim=1, keepdim=True)
    return -F.logsigmoid(top_logps.gather(1, alternatives).squeeze(1) - tokens.policy_logps)
