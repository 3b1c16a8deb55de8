"""EXO: the reverse KL divergence from the policy's preference to the smoothed label.

Paper: Ji et al., Towards Efficient Exact Optimization, 2024, arxiv.org/abs/2402.00856, eq. 16
Formula: KL((sigmoid(m), sigmoid(-m)) || (1 - eps, eps)), m = beta (h_w - h_l), h = log(pi / ref)

The paper's text was not read; this is `exo_pair` of trl 1.16.

1. The optimum is the margin log((1 - eps) / eps), as with DPO's label smoothing. The gradient has
   a factor sigmoid(m) sigmoid(-m), so it fades at large margins, of wrong pairs too.
2. On a list the loss is the mean over its preferred pairs; the paper's own form for lists, which
   samples K completions, is not here.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("exo")
class EXO(Objective):
    """Bring the policy's preference near the label, in the direction that seeks one mode."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5)
    """eps, the label's share for the rejected response, in (0, 0.5). The loss takes its logarithm,
    so 0 is refused; the smaller, the larger the optimal margin."""

    @field_validator("label_smoothing", mode="before")
    @classmethod
    def _has_a_logarithm(cls, value: object) -> object:
        if value == 0 and not isinstance(value, bool):
            raise ValueError("should be above 0, such as 1e-3, as the loss takes its logarithm")
        return value

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.beta * inputs.log_ratios()
        margins = pairwise_differences(rewards)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        eps = self.label_smoothing
        right = torch.sigmoid(margins) * (F.logsigmoid(margins) - math.log1p(-eps))
        wrong = torch.sigmoid(-margins) * (F.logsigmoid(-margins) - math.log(eps))
        return ObjectiveOutput(
            losses=masked_mean(right + wrong, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
