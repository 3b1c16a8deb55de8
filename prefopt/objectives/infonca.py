"""InfoNCA: cross-entropy between the softmax of the scores and the softmax of the rewards.

Paper: Chen et al., Noise Contrastive Alignment of Language Models with Explicit Rewards, 2024,
arxiv.org/abs/2402.05369 (the form of the authors' code; no equation number was verified)
Formula: -sum_i q_i log softmax(r)_i, q = softmax(s / alpha), r = beta log(pi / ref)

The optimum is softmax(r) = q: differences of rewards are bounded and their common level is free.
On a pair it tends to DPO as alpha goes to 0.

1. The authors' runs have alpha = 1e-4 on scores of 1 to 10 and add 0.01 to the first response's
   score, so that their labels are one-hot: scores (8.5, 8.5, 8, 3) give (1, 0, 0, 0). Here
   nothing is added, equal scores get equal labels, and a warning says that labels are one-hot.
2. The authors' code is written for K = 4 and takes the first response for the best. Here K is any
   number from 2 up and the order is free; a response alone says nothing.
"""

from typing import ClassVar

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.reductions import masked_sum
from prefopt.ops.soft_labels import masked_log_softmax, soft_labels, warning_of_hard_labels
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("infonca")
class InfoNCA(Objective):
    """Distribute the policy over the responses of a list as their scores say."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "graded"

    beta: float = Field(default=0.01, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    alpha: float = Field(gt=0)
    """Temperature of the soft labels, in the unit of the scores, > 0: a score higher by alpha has e
    times the label. Small names the best response only, large makes all the same."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted with fewer than two responses."""
        rewards = self.beta * inputs.log_ratios()
        labels = soft_labels(inputs.scores, inputs.where, self.alpha).to(rewards.dtype)
        log_shares = masked_log_softmax(rewards, inputs.where)
        return ObjectiveOutput(
            losses=masked_sum(-labels * log_shares, inputs.where),
            counted=inputs.where.sum(dim=1) > 1,
            rewards=rewards.detach(),
            metrics={},
        )

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """Whether most soft labels name the best response and nothing else."""
        return warning_of_hard_labels(scores, where, self.alpha)
