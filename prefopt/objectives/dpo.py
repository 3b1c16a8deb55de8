"""DPO: a logistic loss on the difference of implicit rewards.

Paper: Rafailov et al., Direct Preference Optimization, 2023, arxiv.org/abs/2305.18290, eq. 7
Formula: -(1 - eps) log sigmoid(m) - eps log sigmoid(-m), m = beta (h_w - h_l), h = log(pi / ref)

`label_smoothing` (eps) is the conservative DPO of E. Mitchell, A note on DPO with noisy preferences
(https://ericmitchell.ai/cdpo.pdf, eq. 3). With `length_normalized` the log-ratio of a response is
divided by its number of tokens (`sigmoid_norm` of trl 1.16).

On a list the loss is the mean over its preferred pairs; the paper has pairs only.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("dpo")
class DPO(Objective):
    """Make the preferred response more likely than the other, measured against the reference."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of flipped labels, in [0, 0.5); above 0 the margin has a finite optimum."""
    length_normalized: bool = False
    """Divide each log-ratio by its response's number of tokens; beta is then per nat per token."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        log_ratios = inputs.log_ratios()
        if self.length_normalized:
            log_ratios = log_ratios / inputs.num_tokens.clamp(min=1)
        rewards = self.beta * log_ratios
        margins = pairwise_differences(rewards)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        eps = self.label_smoothing
        pair_losses = -(1 - eps) * F.logsigmoid(margins) - eps * F.logsigmoid(-margins)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
