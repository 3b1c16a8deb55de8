"""MMPO: DPO with soft labels that follow from how far apart the scores are.

Paper: Kim et al., Margin Matching Preference Optimization, 2024, arxiv.org/abs/2410.03145
Formula: -p log sigmoid(m) - (1 - p) log sigmoid(-m), p = sigmoid(gamma (s_w - s_l)),
    m = beta (h_w - h_l), h = log(pi / ref)

The paper's text was not read; this is the form of the authors' code
(github.com/kykim0/margin-matching-pref-opt).

1. The optimal margin is gamma (s_w - s_l): a gap of scores becomes a gap of rewards.
2. Scores are not normalised, as in the authors' code, so gamma is in units of one score: tune it
   anew for other data, or set `data.scores`.
3. The authors' code reads gamma 0 or null as p = 1, plain DPO; here 0 is refused.
4. On a list the loss is the mean over its preferred pairs; the paper has pairs only. Equal scores
   make no pair.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("mmpo")
class MMPO(Objective):
    """Bring margins of implicit rewards to gamma times the margins of the scores."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "graded"

    beta: float = Field(default=0.01, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    gamma: float = Field(default=2.2, gt=0)
    """Reward margin per unit of score, > 0; the larger, the nearer to plain DPO."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.beta * inputs.log_ratios()
        margins = pairwise_differences(rewards)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        # Scores of unused slots may be anything, and 0 times NaN is NaN in the backward pass.
        gaps = pairwise_differences(inputs.scores).masked_fill(~pairs, 0.0)
        targets = (self.gamma * gaps).to(margins.dtype)
        right, wrong = torch.sigmoid(targets), torch.sigmoid(-targets)
        pair_losses = -right * F.logsigmoid(margins) - wrong * F.logsigmoid(-margins)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
