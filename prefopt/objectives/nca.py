"""NCA: a logistic loss on each reward by itself, so that good responses do not become unlikely.

Paper: Chen et al., Noise Contrastive Alignment of Language Models with Explicit Rewards, 2024,
arxiv.org/abs/2402.05369 (the form of the authors' code; no equation number was verified)
Formula: -sum_i q_i log sigmoid(r_i) - (1 / K) sum_i log sigmoid(-r_i), q = softmax(s / alpha),
r = beta log(pi / ref); without alpha q is 1 at the best response and 0 elsewhere

The optimum is r_i = log(K q_i), an absolute level: with the labels of a pair the chosen response
rises to r = log 2, which is 69 nats at beta 0.01, and no further; the rejected one has no floor.

1. Without alpha a pair has the loss of the authors' pair trainer and of trl's `nca_pair`. On a
   list the best-scored response gets the whole label, and those that share the top share it. Ours.
2. The authors' list trainer has alpha = 1e-4 on scores of 1 to 10 and adds 0.01 to the first
   score: its labels are one-hot. Here nothing is added, and a warning says so of a given alpha.
3. The authors' code is written for K = 4. Here K is the number of the group's own responses; one
   alone, q = 1, is held at the reference.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.reductions import masked_mean, masked_sum
from prefopt.ops.soft_labels import soft_labels, warning_of_hard_labels
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("nca")
class NCA(Objective):
    """Bring the reward of each response to the level that its soft label asks for."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = decided_by(
        lambda owner: "responses" if owner.alpha is None else "graded"
    )

    beta: float = Field(default=0.01, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    alpha: float | None = Field(default=None, gt=0)
    """Temperature of the soft labels, in the unit of the scores, > 0: a score higher by alpha has e
    times the label. null, the pair form: the best response has the whole label (0 is refused)."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: not counted where there is no response."""
        rewards = self.beta * inputs.log_ratios()
        labels = soft_labels(inputs.scores, inputs.where, self.alpha).to(rewards.dtype)
        raised = masked_sum(-labels * F.logsigmoid(rewards), inputs.where)
        held = masked_mean(-F.logsigmoid(-rewards), inputs.where)
        return ObjectiveOutput(
            losses=raised + held,
            counted=inputs.where.any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """Whether most soft labels name the best response, which null would say plainly."""
        return None if self.alpha is None else warning_of_hard_labels(scores, where, self.alpha)
