"""SimPO: a logistic loss on mean log-probs, with a target margin and without a reference.

Paper: Meng et al., SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024,
arxiv.org/abs/2405.14734
Formula: -log sigmoid(beta lbar_w - beta lbar_l - gamma), lbar = log pi(y|x) / |y|

1. The authors' code writes beta (lbar_w - lbar_l - gamma / beta), which is the same; its recipes
   give the ratio gamma / beta. Its label smoothing and hinge are left out, and its NLL term is a
   second term of `weighted_sum`.
2. The `simpo` loss of trl's CPO trainer adds an NLL of weight 1 unless `cpo_alpha` is set to 0.
3. On a list the loss is the mean over its preferred pairs; the paper has pairs only.

The gradient falls with the length of a response, so learning rates differ from those of sums. The
paper's text was not read: the form is that of the authors' code.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("simpo")
class SimPO(Objective):
    """Make the preferred response more likely per token than the other one, by a margin."""

    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=2.0, gt=0)
    """Reward per nat per token, > 0; published runs use 2 to 10."""
    gamma: float = Field(default=1.0, ge=0)
    """Margin of rewards at which a pair costs log 2, >= 0; published are 0.3 to 0.5 times beta,
    and 0.1 to 0.8 at the extremes."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        rewards = self.beta * logps / inputs.num_tokens.clamp(min=1)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        pair_losses = -F.logsigmoid(pairwise_differences(rewards) - self.gamma)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
