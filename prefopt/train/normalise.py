"""Log-prob gradients of one length within each group, by scaling what the loss wants of each.

Normalised preference optimisation (arXiv 2410.13828, section 6) updates a pair by
theta += eta * C * (g_w / |g_w| - g_l / |g_l|): with both gradients of one length, the chosen
response cannot fall and the rejected one cannot rise by that step, to first order. The paper leaves
C open, and no code of the authors has this. Our reading: the loss keeps its coefficient c_k of each
response, which is multiplied by m / |g_k|, where m is the geometric mean of |g| over the group. For
a pair with |c_w| = |c_l|, as those of DPO are, that is the paper's update with C = |c| m. Other
objectives keep the ratio that they ask for: the chosen response rises iff d_w >= d_l cos(g_w, g_l).
An update stays about as long as it was, so that a learning rate keeps its meaning.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.data.collate import collate, records_of, some_responses
from prefopt.diagnostics.gram import GramMeter
from prefopt.errors import UserError
from prefopt.train.steps import cut_group
from prefopt.types import GroupBatch, TokenizedRecord


class GradientNorms:
    """Lengths of the log-prob gradients of responses, measured before a backward pass."""

    def __init__(self, meter: GramMeter, *, tokens_per_micro_batch: int) -> None:
        """Takes what measures the policy, which must be whole on every process.

        Args:
            meter: of the policy.
            tokens_per_micro_batch: that one pass may hold, each response with its prompt.
        """
        self._meter, self._budget = meter, tokens_per_micro_batch

    def of(self, batch: GroupBatch) -> Float[Tensor, " R"]:
        """Of the responses of a micro-batch, in their order and in float32.

        Raises:
            UserError: if some parameters have no part in them.
        """
        pieces = [piece for record in records_of(batch) for piece in self._pieces(record)]
        grams = [self._meter.measure(piece.to(batch.input_ids.device)) for piece in pieces]
        missing = grams[0].missing
        if missing:
            raise UserError(
                f"training.normalise_gradients: no layer tells whose tokens {', '.join(missing)} "
                "acts on, so that gradients cannot be measured. Freeze it, or remove the key."
            )
        return torch.cat([gram.total.diagonal().sqrt() for gram in grams]).float()

    def _pieces(self, record: TokenizedRecord) -> list[GroupBatch]:
        """Some responses each: a length needs no other one."""
        whole, layout = collate([record]), self._meter.layout
        lengths = np.array(record.num_response_tokens)
        cuts = cut_group(layout, self._budget, record.num_prompt_tokens, lengths)
        return [some_responses(whole, *cut) for cut in cuts]


def token_factors(batch: GroupBatch, norms: Float[Tensor, " R"]) -> Float[Tensor, " N"]:
    """What the slope of each scored token is multiplied by.

    Args:
        batch: whole groups.
        norms: of their responses, in order.
    """
    of_groups = batch.where.sum(dim=1).tolist()
    factors = torch.cat([factors_of(each) for each in norms.split(of_groups)])
    return batch.to_groups(factors).flatten()[batch.response_of_token]


def factors_of(norms: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """What makes gradients of such lengths all as long as their geometric mean.

    Where one of them is 0, all stay as they are.
    """
    if (norms == 0).any():
        return torch.ones_like(norms)
    return norms.log().mean().exp() / norms
