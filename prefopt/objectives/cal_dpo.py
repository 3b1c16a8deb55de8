"""Cal-DPO: DPO plus two squares that fix the scale of the log-ratios themselves.

Paper: Xiao et al., Cal-DPO, 2024, arxiv.org/abs/2412.14516
Formula: -log sigmoid(h_w - h_l) + (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2,
    h = log(pi / ref)

The paper's text was not read; this is the form printed in arxiv.org/abs/2502.01237.

1. The logistic term has no beta: beta only sets the targets, + and - 1 / (2 beta) nats.
2. At the small betas that 2502.01237 finds best the targets are thousands of nats, the squares
   dominate, and each response has a gradient of about 1 / beta: keep clipping it.
3. The reward is beta times the log-ratio, so the targets are 1/2 and -1/2.
4. On a list the loss is the mean over its preferred pairs; the paper has pairs only.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("cal_dpo")
class CalDPO(Objective):
    """Bring log-ratios to 1 / (2 beta) for preferred responses and to its negative for others."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=3e-4, gt=0)
    """Sets the targets of the log-ratios, + and - 1 / (2 beta) nats, > 0; a large beta keeps the
    policy near the reference."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        log_ratios = inputs.log_ratios()
        pairs = preferred_pairs(inputs.scores, inputs.where)
        target = 1 / (2 * self.beta)
        logistic = -F.logsigmoid(pairwise_differences(log_ratios))
        preferred = (log_ratios - target).square().unsqueeze(2)
        rejected = (log_ratios + target).square().unsqueeze(1)
        return ObjectiveOutput(
            losses=masked_mean(logistic + preferred + rejected, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=(self.beta * log_ratios).detach(),
            metrics={},
        )
