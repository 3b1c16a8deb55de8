"""Pairwise Cringe: the Cringe loss of a pair, behind a gate that closes as the margin grows.

Paper: Xu et al., Some Things Are More CRINGE than Others, 2023, arxiv.org/abs/2312.16682
Formula: g (CE(y_w) + alpha Cringe(y_l)), g = sigmoid((b - M) / tau), M = log pi(y_w) - log pi(y_l);
Cringe(y) = softplus(log p(y_t) - log p(s_t)) over tokens, s_t as in `cringe`

1. The paper's text was not read, and no code of its authors is known: this structure is secondary,
   and what it leaves open is a parameter whose default is ours: whether the gate carries a gradient
   (detach_gate), whether M is a sum or a mean over tokens (length_normalized), how CE and Cringe
   are reduced, and the values of b (margin), tau (temperature), alpha and k.
2. A gate with a gradient multiplies that by CE + alpha Cringe. Where these are sums they are
   hundreds of nats, and the gate's own gradient outweighs the rest.
3. On a list the loss is the mean over its preferred pairs (ours). The paper trains on the best and
   the worst of N responses (`data.keep: best_worst`), and repeats with responses of the new policy.
4. No reference is involved. The reward of a response is the log-prob that M compares.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.contrast import contrastive_losses
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput

Reduction = Literal["sequence_mean", "sequence_sum"]


@register("pairwise_cringe")
class PairwiseCringe(Objective):
    """Cringe on the pairs that the policy does not yet rank by a soft margin."""

    needs: ClassVar[Needs] = "preferred_pairs"
    needs_tokens: ClassVar[bool] = True
    num_top_logits: ClassVar[int] = decided_by(lambda owner: owner.k + 1)

    alpha: float = Field(default=1.0, gt=0)
    """Weight of the contrast of the rejected response, > 0."""
    k: int = Field(default=1, ge=1)
    """How many of the likeliest tokens the alternative is drawn from, >= 1; 1 takes the first."""
    margin: float = 0.0
    """Margin b at which the gate is half open, in the nats of M; a higher one keeps pairs longer in
    training."""
    temperature: float = Field(default=10.0, gt=0)
    """Softness tau of the gate, in the nats of M, > 0; near 0 it is a switch."""
    detach_gate: bool = True
    """True takes the gate for a constant weight; False also follows the gate's own gradient."""
    length_normalized: bool = False
    """Compare log-probs per token in M; margin and temperature are then per token."""
    ce_reduction: Reduction = "sequence_mean"
    """How the preferred response's tokens are reduced: their mean or their sum."""
    cringe_reduction: Reduction = "sequence_mean"
    """How the rejected response's contrasts are reduced: their mean or their sum."""

    def responses_with_statistics(
        self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
    ) -> Bool[Tensor, "G K"]:
        """Those that score below another of their group."""
        return preferred_pairs(scores, where).any(dim=1)

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        num_tokens = inputs.num_tokens.clamp(min=1)
        contrasts = inputs.sum_over_tokens(
            contrastive_losses(inputs.token_inputs(), num_alternatives=self.k)
        )
        rewards = logps / num_tokens if self.length_normalized else logps
        margins = pairwise_differences(rewards.detach() if self.detach_gate else rewards)
        gates = torch.sigmoid((self.margin - margins) / self.temperature)
        ce = _reduced(-logps, num_tokens, self.ce_reduction)
        cringe = _reduced(contrasts, num_tokens, self.cringe_reduction)
        costs = ce.unsqueeze(2) + self.alpha * cringe.unsqueeze(1)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        return ObjectiveOutput(
            losses=masked_mean(gates * costs, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )


def _reduced(
    sums: Float[Tensor, "G K"], num_tokens: Int[Tensor, "G K"], reduction: Reduction
) -> Float[Tensor, "G K"]:
    return sums / num_tokens if reduction == "sequence_mean" else sums
