"""BCO: a classifier of preferred and rejected responses, whose logit is the implicit reward.

Paper: Jung et al., Binary Classifier Optimization, 2024, arxiv.org/abs/2404.04656
Formula: -log sigmoid(r_w - delta) - log sigmoid(-(r_l - delta)), r = beta log(pi / ref), delta = 0

The paper's text was not read; this is `bco_pair` of trl 1.16.

1. The paper's delta is a mean of the rewards seen so far, which would make a step depend on those
   before it. Here, as in trl's paired form, it is 0. LLaMA-Factory keeps a running mean.
2. The responses of a pair do not meet in the loss: each is measured against the reference.
3. On a list the loss is the mean over its preferred pairs.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("bco")
class BCO(Objective):
    """Make rewards of preferred responses positive, and those of the others negative."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.01, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.beta * inputs.log_ratios()
        pairs = preferred_pairs(inputs.scores, inputs.where)
        pair_losses = F.softplus(-rewards).unsqueeze(2) + F.softplus(rewards).unsqueeze(1)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
