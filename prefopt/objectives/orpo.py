"""ORPO: a logistic loss on the ratio of odds, beside the NLL of the preferred response.

Paper: Hong et al., ORPO: Monolithic Preference Optimization without Reference Model, 2024,
arxiv.org/abs/2403.07691
Formula: -nll_weight lbar_w - odds_weight log sigmoid(beta (o_w - o_l)),
lbar = log pi(y|x) / |y|, o = log(p / (1 - p)), p = exp(lbar)

1. The odds weight is the paper's lambda. The authors' code calls it `alpha`, trl and LLaMA-Factory
   `beta`; our `beta` is the temperature on log-odds of 2502.01237. With `nll_weight` null and
   `odds_weight` 1 this is that paper's ORPO_align, for a model that is fine-tuned already.
2. The NLL is the mean over the tokens of the response, then over pairs. The authors' code, unless
   told otherwise, and trl take it over prompt and response; LLaMA-Factory does as we do.
3. 1 - p comes from expm1 or log1p, whichever is exact, and is at least the rounding error: the
   plain form is infinite for a response that the model knows by heart.
4. On a list both terms are means over its preferred pairs; the paper has pairs only.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.log1mexp import log_odds
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("orpo")
class ORPO(Objective):
    """Make the preferred response likely, and its odds higher than those of the other one."""

    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=1.0, gt=0)
    """Reward per unit of log-odds of a mean token, > 0; the ORPO paper has 1."""
    odds_weight: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio, > 0: lambda in the paper, `beta` in trl."""
    nll_weight: float | None = Field(default=1.0, gt=0)
    """Weight of the preferred response's NLL per token, > 0; null leaves the term out, for a model
    that is fine-tuned already."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        mean_logps = logps / inputs.num_tokens.clamp(min=1)
        rewards = (self.beta * log_odds(mean_logps)).masked_fill(~inputs.where, 0.0)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        pair_losses = -self.odds_weight * F.logsigmoid(pairwise_differences(rewards))
        if self.nll_weight is not None:
            pair_losses = pair_losses - self.nll_weight * mean_logps.unsqueeze(2)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )
