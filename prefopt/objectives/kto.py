"""KTO: each response for itself is lifted above a baseline, or pushed below it.

Paper: Ethayarajh et al., Model Alignment as Prospect Theoretic Optimization, 2024,
arxiv.org/abs/2402.01306
Formula: lambda_D (1 - sigmoid(beta (h - z0))) if desirable, lambda_U (1 - sigmoid(beta (z0 - h)))
if not; h = log(pi / ref), z0 = max(0, mean h of mismatched prompts and responses), detached

1. The mean is over responses, whatever group they are in: a pair and its two responses as records
   of their own give the same update, for the same z0. The lambdas are not in its denominator, as in
   HALOs.
2. z0 estimates KL(pi || ref). It is taken over the whole optimiser step, as in HALOs; trl 1.16
   takes it per device and averages. The statistic must therefore be asked of prompts paired with
   the responses of another group of the step. Without it, as in a call by hand or a step of one
   group, z0 is 0. `baseline` in the log is z0, in nats.
3. The paper's text was not read; this is the form of HALOs and of trl, without HALOs' `humanline`.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.reductions import masked_sum
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term

_MOST_ADVISED = 4 / 3


@register("kto")
class KTO(Objective):
    """Lift desirable responses above a baseline and push undesirable ones below it."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "labels"
    couples_groups: ClassVar[bool] = True
    mismatches_responses: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight lambda_D of responses labelled 1, > 0."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight lambda_U of responses labelled 0, > 0. Where labels are unbalanced, change one of the
    weights until desirable ones weigh 1 to 4/3 times as much as undesirable ones in sum."""

    def statistic(self, inputs: ObjectiveInputs) -> Float[Tensor, "G C"]:
        """Sum of log-ratios, in nats, and number of responses; these belong to other prompts."""
        log_ratios = inputs.log_ratios().detach()
        num_responses = inputs.where.sum(dim=1).to(log_ratios.dtype)
        return torch.stack([log_ratios.sum(dim=1), num_responses], dim=1)

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups, sums over their responses; z0 is 0 without `step_statistics`."""
        log_ratios = inputs.log_ratios()
        baseline = self._baseline(inputs.step_statistics, log_ratios)
        gains = self.beta * (log_ratios - baseline)
        # 1 - sigmoid(z) is sigmoid(-z), without cancellation.
        response_losses = torch.where(
            inputs.scores > 0,
            self.desirable_weight * torch.sigmoid(-gains),
            self.undesirable_weight * torch.sigmoid(gains),
        )
        losses = masked_sum(response_losses, inputs.where)
        num_responses = inputs.where.sum(dim=1).to(losses.dtype)
        return ObjectiveOutput(
            losses=losses,
            counted=inputs.where.any(dim=1),
            rewards=(self.beta * log_ratios).detach(),
            metrics={"baseline": baseline.expand_as(losses)},
            terms={"kto": Term(losses=losses, weight=num_responses)},
        )

    def _baseline(
        self, step: Float[Tensor, "S C"] | None, log_ratios: Float[Tensor, "G K"]
    ) -> Float[Tensor, ""]:
        if step is None:
            return log_ratios.new_zeros(())
        total, num_responses = step.detach().to(log_ratios.dtype).sum(dim=0).unbind()
        return (total / num_responses.clamp(min=1)).clamp(min=0)

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """Says if the labels, with their weights, lack the balance that trl advises."""
        num_desirable = int((where & (scores > 0)).sum())
        num_undesirable = int(where.sum()) - num_desirable
        desirable = self.desirable_weight * num_desirable
        undesirable = self.undesirable_weight * num_undesirable
        if undesirable <= desirable <= _MOST_ADVISED * undesirable:
            return None
        return (
            f"objective: {num_desirable} desirable responses weigh {desirable:g} in sum and "
            f"{num_undesirable} undesirable ones {undesirable:g}; the first should be 1 to 4/3 "
            "times the second. Change desirable_weight or undesirable_weight, not both."
        )
