"""APO-down: lower both responses, the preferred one less.

Paper: D'Oosterlinck et al., Anchored Preference Optimization, 2024, arxiv.org/abs/2408.06266, eq. 8
Formula: sigmoid(r_w) + 1 - sigmoid(r_w - r_l), r = beta log(pi / ref)

The paper's text was not read; this is the form of trl 1.16.

1. Meant for data whose preferred responses are worse than what the model writes; `apo_zero` is for
   better ones.
2. There is no logarithm, so the gradient vanishes on both sides: also a pair that is very wrong is
   left alone.
3. On a list the loss is the mean over its preferred pairs, so a response that is preferred to
   several others is lowered once for each of them; the paper has pairs only.
"""

from typing import ClassVar

import torch
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("apo_down")
class APODown(Objective):
    """Make preferred responses less likely than under the reference, and others still less."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; beyond a few 1 / beta nats a response has no gradient."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.beta * inputs.log_ratios()
        pairs = preferred_pairs(inputs.scores, inputs.where)
        # 1 - sigmoid(m) is sigmoid(-m), without the cancellation.
        wrong = torch.sigmoid(-pairwise_differences(rewards))
        return ObjectiveOutput(
            losses=masked_mean(torch.sigmoid(rewards).unsqueeze(2) + wrong, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
