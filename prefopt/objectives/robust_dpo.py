"""Robust DPO: the DPO loss with the bias of flipped labels taken out.

Paper: Chowdhury et al., Provably Robust DPO, 2024, arxiv.org/abs/2403.00409
Formula: [-(1 - eps) log sigmoid(m) + eps log sigmoid(-m)] / (1 - 2 eps), m = beta (h_w - h_l),
    h = log(pi / ref)

The paper's text was not read; this is the form of trl 1.16.

1. If a share eps of the labels is flipped at random, the mean loss is that of DPO on clean labels.
2. The loss is DPO's minus m eps / (1 - 2 eps): its slope never vanishes and it falls below any
   number, so a negative loss is no fault. Train shortly, or watch held-out accuracy.
3. trl only warns of eps outside [0, 1/2); here it is refused.
4. On a list the loss is the mean over its preferred pairs; the paper has pairs only.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("robust_dpo")
class RobustDPO(Objective):
    """DPO for labels of which a known share is flipped."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of flipped labels, in [0, 0.5); 0 is DPO, and near 0.5 the loss grows without limit."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.beta * inputs.log_ratios()
        margins = pairwise_differences(rewards)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        eps = self.label_smoothing
        pair_losses = -(1 - eps) * F.logsigmoid(margins) + eps * F.logsigmoid(-margins)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses / (1 - 2 * eps), pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
