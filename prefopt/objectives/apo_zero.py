"""APO-zero: raise the preferred response and lower the other, each against the reference.

Paper: D'Oosterlinck et al., Anchored Preference Optimization, 2024, arxiv.org/abs/2408.06266, eq. 7
Formula: 1 - sigmoid(r_w) + sigmoid(r_l), r = beta log(pi / ref)

The paper's text was not read; this is the form of trl 1.16.

1. Meant for data whose preferred responses are better than what the model writes; `apo_down` is for
   worse ones.
2. There is no logarithm, so the gradient vanishes on both sides: also a pair that is very wrong is
   left alone.
3. arxiv.org/abs/2502.01237 leaves the constant 1 out; the gradient is the same.
4. On a list the loss is the mean over its preferred pairs; the paper has pairs only.
"""

from typing import ClassVar

import torch
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("apo_zero")
class APOZero(Objective):
    """Make preferred responses likelier, and others less likely, than under the reference."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; beyond a few 1 / beta nats a response has no gradient."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.beta * inputs.log_ratios()
        pairs = preferred_pairs(inputs.scores, inputs.where)
        # 1 - sigmoid(r) is sigmoid(-r), without the cancellation.
        pair_losses = torch.sigmoid(-rewards).unsqueeze(2) + torch.sigmoid(rewards).unsqueeze(1)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
