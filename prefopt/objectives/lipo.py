"""LiPO: alignment as learning to rank a scored list, with seven ranking losses.

Paper: Liu et al., LiPO: Listwise Preference Optimization, 2024, arxiv.org/abs/2402.01878; softmax
is its eq. 11
Formula: sum over s_i > s_j of W_ij log(1 + exp(r_j - r_i)) for LiPO-lambda, r = beta log(pi / ref),
W_ij = |2^s_i - 2^s_j| |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|, rank by falling r

The other rankings, with the same r and sums over the list:
    pair_logistic   lambda with W = 1
    pair_hinge      max(0, 1 - (r_i - r_j)) over s_i > s_j
    list_mle        log sum_j exp(r_j) over s_j <= s_i, less r_i
    softmax         -(s_i / sum s) log softmax(r)_i
    point_mse       (s_i - r_i)^2
    point_sigmoid   -s_i log sigmoid(r_i) - (1 - s_i) log sigmoid(-r_i)

1. All losses are sums over a list, and W has no gradient, as in the paper. The authors' library rax
   has discounts with log2 and a factor K in W, K ln 2 times ours in all; it takes the mean over
   the pairs of a batch or over items, and its softmax does not divide the scores by their sum.
2. Tied rewards, as all are when policy = reference, share the mean discount of their ranks. Between
   two of them W takes the mean gap over all orders; the gap of their means is 0, and training would
   never start. rax breaks ties by the order of the list. Ours.
3. list_mle with tied scores: each of them against all responses that score the same or less
   (Breslow's form). rax breaks ties by the order of the list. Ours.
4. A list says nothing to pairs and lambda if all scores tie, to list_mle and softmax if it has one
   response, and to softmax if all scores are 0, where eq. 11 divides by 0. Ours.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.ranking import discount_gaps
from prefopt.ops.reductions import masked_sum
from prefopt.ops.soft_labels import masked_log_softmax
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("lipo")
class LiPO(Objective):
    """Rank the responses of a list by their scores, the best pairs to tell apart first."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "graded"
    score_range: ClassVar[tuple[float, float] | None] = (0.0, 1.0)

    beta: float = Field(default=0.05, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    ranking: Literal[
        "lambda",
        "pair_logistic",
        "pair_hinge",
        "list_mle",
        "softmax",
        "point_mse",
        "point_sigmoid",
    ] = "lambda"
    """The ranking loss. lambda weighs pairs by what exchanging them would gain; pair_logistic and
    pair_hinge weigh all alike; list_mle reads the order of the list, softmax the share of each
    score in their sum; point_mse and point_sigmoid pull each reward to its own score."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: sums over the list, 0 and not counted where it says nothing."""
        rewards = self.beta * inputs.log_ratios()
        where, scores = inputs.where, inputs.scores.masked_fill(~inputs.where, 0.0)
        if self.ranking == "list_mle":
            losses, counted = _list_mle(rewards, scores, where)
        elif self.ranking == "softmax":
            losses, counted = _softmax(rewards, scores, where)
        elif self.ranking in ("point_mse", "point_sigmoid"):
            labels, counted = scores.to(rewards.dtype), where.any(dim=1)
            if self.ranking == "point_mse":
                losses = masked_sum((labels - rewards) ** 2, where)
            else:
                pulls = labels * F.logsigmoid(rewards) + (1 - labels) * F.logsigmoid(-rewards)
                losses = masked_sum(-pulls, where)
        else:
            losses, counted = self._pairs(rewards, scores, where)
        return ObjectiveOutput(losses=losses, counted=counted, rewards=rewards.detach(), metrics={})

    def _pairs(
        self,
        rewards: Float[Tensor, "G K"],
        scores: Float[Tensor, "G K"],
        where: Bool[Tensor, "G K"],
    ) -> tuple[Float[Tensor, " G"], Bool[Tensor, " G"]]:
        pairs = preferred_pairs(scores, where)
        margins = pairwise_differences(rewards)
        if self.ranking == "pair_hinge":
            pair_losses = F.relu(1 - margins)
        else:
            pair_losses = -F.logsigmoid(margins)
        if self.ranking == "lambda":
            gains = pairwise_differences(torch.exp2(scores.to(rewards.dtype))).abs()
            pair_losses = gains * discount_gaps(rewards, where) * pair_losses
        return masked_sum(pair_losses, pairs), pairs.flatten(start_dim=1).any(dim=1)


def _list_mle(
    rewards: Float[Tensor, "G K"], scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
) -> tuple[Float[Tensor, " G"], Bool[Tensor, " G"]]:
    """Each response against all that score no higher, itself included."""
    rivals = where.unsqueeze(1) & (scores.unsqueeze(2) >= scores.unsqueeze(1))
    # An unused slot is its own rival, for a log-sum-exp over nothing has no gradient.
    rivals = rivals | torch.eye(rewards.shape[1], dtype=torch.bool, device=rewards.device)
    totals = rewards.unsqueeze(1).masked_fill(~rivals, -torch.inf).logsumexp(dim=2)
    return masked_sum(totals - rewards, where), where.sum(dim=1) > 1


def _softmax(
    rewards: Float[Tensor, "G K"], scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
) -> tuple[Float[Tensor, " G"], Bool[Tensor, " G"]]:
    """Cross-entropy of softmax(rewards) with the scores as shares of their sum."""
    total = scores.sum(dim=1, keepdim=True)
    shares = (scores / total.masked_fill(total == 0, 1.0)).to(rewards.dtype)
    losses = masked_sum(-shares * masked_log_softmax(rewards, where), where)
    return losses, (where.sum(dim=1) > 1) & (total.squeeze(1) > 0)
