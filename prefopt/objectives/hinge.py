"""Hinge: a loss that is linear up to a margin of 1 and flat beyond it.

Paper: Liu et al., Statistical Rejection Sampling (RSO), 2023, arxiv.org/abs/2309.06657, after
    Zhao et al., SLiC-HF, 2023, arxiv.org/abs/2305.10425
Formula: max(0, 1 - beta (h_w - h_l)), h = log(pi / ref)

The papers' texts were not read; this is the `hinge` of trl 1.16.

1. SLiC-HF has no reference and adds a likelihood term: that is the objective `slic`. To add such
   a term here, put `hinge` and `nll` into a `weighted_sum`.
2. A pair whose margin is met has no gradient: once all are, training stands still.
3. On a list the loss is the mean over its preferred pairs.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("hinge")
class Hinge(Objective):
    """Raise the margin of implicit rewards to 1, and leave it alone from there on."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.05, gt=0)
    """Reward per nat of log-ratio, > 0; a pair is done at a difference of 1 / beta nats."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.beta * inputs.log_ratios()
        pairs = preferred_pairs(inputs.scores, inputs.where)
        pair_losses = F.relu(1 - pairwise_differences(rewards))
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
