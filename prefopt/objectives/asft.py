"""ASFT: a logistic loss on the odds of each response of a pair, beside NLL of the preferred one.

Paper: ASFT as given in Gorbatovski et al., The Differences Between Direct Alignment Algorithms are
a Blur, 2025, arxiv.org/abs/2502.01237
Formula: -nll_weight lbar_w - odds_weight [log sigmoid(beta o_w) + log sigmoid(-beta o_l)],
lbar = log pi(y|x) / |y|, o = log(p / (1 - p)), p = exp(lbar)

1. With `beta` 1 this is -(nll_weight + odds_weight) lbar_w - odds_weight log(1 - p_l): likelihood
   of one response and unlikelihood of the other. The responses of a pair do not meet in it.
2. In one stage, from a base model, the NLL is there and beta is 1; the paper tries odds weights of
   0.1 to 1 and finds 1 best. To align a model that is fine-tuned already (ASFT_align), `nll_weight`
   is null, `odds_weight` 1, and `beta` tuned: 0.001 to 0.3 in the paper, by model and data.
3. 1 - p is computed as in `orpo`, and is at least the rounding error.
4. On a list all terms are means over its preferred pairs; the paper has pairs only.

The paper that ASFT comes from was not read.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.log1mexp import log_odds
from prefopt.ops.pairs import preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("asft")
class ASFT(Objective):
    """Raise the odds of preferred responses and lower those of the others, each for itself."""

    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=1.0, gt=0)
    """Reward per unit of log-odds of a mean token, > 0; the smaller, the
    more alike responses weigh, whatever their odds."""
    odds_weight: float = Field(default=1.0, gt=0)
    """Weight of the odds, > 0: lambda in the paper."""
    nll_weight: float | None = Field(default=1.0, gt=0)
    """Weight of the preferred response's NLL per token, > 0; null leaves the term out, for a model
    that is fine-tuned already."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        mean_logps = logps / inputs.num_tokens.clamp(min=1)
        rewards = (self.beta * log_odds(mean_logps)).masked_fill(~inputs.where, 0.0)
        as_preferred = -self.odds_weight * F.logsigmoid(rewards)
        as_rejected = -self.odds_weight * F.logsigmoid(-rewards)
        if self.nll_weight is not None:
            as_preferred = as_preferred - self.nll_weight * mean_logps
        pairs = preferred_pairs(inputs.scores, inputs.where)
        return ObjectiveOutput(
            losses=masked_mean(as_preferred.unsqueeze(2) + as_rejected.unsqueeze(1), pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
