"""SLiC-HF: a hinge on the difference of summed log-probs, beside NLL, without a reference.

Paper: Zhao et al., SLiC-HF: Sequence Likelihood Calibration with Human Feedback, 2023,
arxiv.org/abs/2305.10425
Formula: max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lambda log pi(y_ref|x)

1. y_ref is the target of supervised fine-tuning in the paper; here it is y_w, as in HALOs, since
   preference data holds no other. Weight and target of the paper are not verified, nor is there
   code of the authors; delta 1 and lambda 0.1 are those of HALOs.
2. The NLL is the sum over the response, as the formula reads. HALOs adds it token by token to the
   hinge of a whole batch, which fits only by accident of shapes.
3. trl's `hinge` reads log-ratios to a reference instead, and has no NLL.
4. On a list both terms are means over its preferred pairs; the paper has pairs only.

A pair whose margin exceeds delta has no gradient but that of the NLL.
"""

from typing import ClassVar

from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("slic")
class SLiC(Objective):
    """Make the preferred response more likely by a margin, and no more than that."""

    needs: ClassVar[Needs] = "preferred_pairs"

    margin: float = Field(default=1.0, gt=0)
    """Margin of summed log-probs at which the hinge ends, in nats, > 0: delta in the paper."""
    nll_weight: float | None = Field(default=0.1, gt=0)
    """Weight of the preferred response's summed NLL, > 0: lambda in the paper; null leaves the term
    out."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        pair_losses = (self.margin - pairwise_differences(logps)).clamp(min=0)
        if self.nll_weight is not None:
            pair_losses = pair_losses - self.nll_weight * logps.unsqueeze(2)
        return ObjectiveOutput(
            losses=masked_mean(pair_losses, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=logps.detach(),
            metrics={},
        )
