"""CLHA: a hinge on mean log-probs whose margin grows with rank, and likelihood of the best.

Paper: Fang et al., CLHA: A Simple yet Effective Contrastive Learning Framework for Human Alignment,
2024, arxiv.org/abs/2403.16649 (the paper's formulas were not read; this is the form of its code)
Formula: sum_d mean over pairs at rank distance d of max(0, margin d - (l_i - l_j))
+ nll_weight (K - 1)^2 (-log pi(y_1)) [s_1 > 0], l = log pi / tokens, y_1 the best-scored,
pairs with s_i - s_j > score_gap

1. In the authors' code margin and score_gap are one constant, 3. Mean log-probs hardly ever differ
   by 3 d, so their hinge pulls at almost every pair. Here they are two parameters.
2. The authors' mean at a distance goes over the pairs of a whole batch. Here it goes over those of
   the group, and the sum over d then over the groups that have a pair: the same if K = 2.
3. Tied scores share a rank, so that d counts different scores, and all that share the top share the
   likelihood term as its mean. The authors take the order of the file. Ours.
4. As in the authors' code the likelihood is a sum over tokens, gated by the sign of the best score,
   and its mean goes over gated groups too. K is the group's own number; one response says nothing.
5. The authors' mask counts one padding token with every response but the longest; none here.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import best_response, pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean, masked_sum
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term


@register("clha")
class CLHA(Objective):
    """Keep mean log-probs apart by a margin per rank, and the best response likely."""

    needs: ClassVar[Needs] = "graded"

    nll_weight: float | None = Field(default=0.05, gt=0)
    """Weight of the best response's negative log-prob, > 0; null leaves it out (0 is refused)."""
    margin: float = Field(default=3.0, gt=0)
    """Difference of mean log-probs asked for per step of rank, in nats per token, > 0."""
    score_gap: float = Field(default=3.0, ge=0)
    """Pairs whose scores differ by no more than this are left out, in the scores' unit, >= 0."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted with fewer than two responses."""
        where, scores = inputs.where, inputs.scores.masked_fill(~inputs.where, 0.0)
        logps = inputs.policy_logps.masked_fill(~where, 0.0)
        means = logps / inputs.num_tokens.clamp(min=1)
        terms = {"rank": self._rank(means, scores, where)}
        if self.nll_weight is not None:
            num_responses = where.sum(dim=1)
            likelihood = masked_mean(logps, best_response(scores, where) & (scores > 0))
            terms["nll"] = Term(
                losses=-likelihood * (num_responses - 1) ** 2,
                weight=(num_responses > 1).to(logps.dtype),
                coefficient=self.nll_weight,
            )
        losses = torch.stack([term.coefficient * term.losses for term in terms.values()])
        weights = torch.stack([term.weight for term in terms.values()])
        return ObjectiveOutput(
            losses=losses.sum(dim=0),
            counted=(weights > 0).any(dim=0),
            rewards=means.detach(),
            metrics={},
            terms=terms,
        )

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """Whether the scores are so close that no pair is left to rank."""
        if self._pairs(scores, where).any() or not preferred_pairs(scores, where).any():
            return None
        return (
            f"score_gap = {self.score_gap:g}: no two responses of a prompt have scores that differ "
            "by more, so nothing is ranked. Lower score_gap; it is in the unit of the scores."
        )

    def _pairs(
        self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
    ) -> Bool[Tensor, "G K K"]:
        return preferred_pairs(scores, where) & (pairwise_differences(scores) > self.score_gap)

    def _rank(
        self, means: Float[Tensor, "G K"], scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
    ) -> Term:
        pairs, distances = self._pairs(scores, where), _rank_distances(scores, where)
        # Where i is not above j the distance is not above 0, and there is no pair to count.
        index = distances.clamp(min=0).flatten(start_dim=1)
        counts = torch.zeros_like(index).scatter_add(1, index, pairs.flatten(start_dim=1).long())
        num_alike = counts.gather(1, index).view_as(distances).clamp(min=1)
        hinges = (self.margin * distances - pairwise_differences(means)).clamp(min=0)
        return Term(
            losses=masked_sum(hinges / num_alike, pairs),
            weight=pairs.flatten(start_dim=1).any(dim=1).to(means.dtype),
        )


def _rank_distances(
    scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
) -> Int[Tensor, "G K K"]:
    """How many ranks i stands above j at [g, i, j]; equal scores have one rank."""
    is_same = scores.unsqueeze(2) == scores.unsqueeze(1)
    # Of those that tie the one in the first slot stands for all, whichever it is.
    is_first = where & ~(is_same & where.unsqueeze(1)).tril(diagonal=-1).any(dim=2)
    rank = (preferred_pairs(scores, where) & is_first.unsqueeze(2)).sum(dim=1)
    return rank.unsqueeze(1) - rank.unsqueeze(2)
