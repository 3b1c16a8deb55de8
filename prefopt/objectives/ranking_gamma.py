"""Ranking gamma: DPO whose reference counts gamma times.

Paper: Chen et al., Preference Learning Algorithms Do Not Learn Preference Rankings, 2024,
    arxiv.org/abs/2405.19534
Formula: -log sigmoid(beta (log pi_w - log pi_l + gamma (log ref_l - log ref_w)))

1. gamma 1 is DPO, gamma 0 needs no reference. Below 1 the loss itself asks that the policy ranks
   the pair right; with DPO the loss can be small while it does not.
2. The reward is what the loss compares, beta (log pi - gamma log ref). Below gamma = 1 long
   responses therefore have lower rewards.
3. On a list the loss is the mean over its preferred pairs; the paper has pairs only.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("ranking_gamma")
class RankingGamma(Objective):
    """DPO with more or less of the reference in it."""

    needs_reference: ClassVar[bool] = decided_by(lambda owner: owner.gamma > 0)
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat, > 0; the larger, the smaller the difference at which a pair is learnt."""
    gamma: float = Field(default=1.0, ge=0, le=2)
    """How much the reference counts, in [0, 2]: 0 not at all, 1 as in DPO."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        values = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        if self.gamma > 0:
            values = self.gamma * inputs.log_ratios() + (1 - self.gamma) * values
        rewards = self.beta * values
        pairs = preferred_pairs(inputs.scores, inputs.where)
        return ObjectiveOutput(
            losses=masked_mean(-F.logsigmoid(pairwise_differences(rewards)), pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
