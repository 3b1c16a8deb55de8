"""Dr. DPO: DPO whose pairs compete for weight within a step, so that suspected flips weigh little.

Paper: Wu et al., Distributionally Robustifying DPO, 2024, arxiv.org/abs/2407.07880, eq. 12-13
Formula: -beta' log(mean over the step of exp(-l / beta')), l = -log sigmoid(beta (h_w - h_l)),
h = log(pi / ref)

1. The gradient is DPO's with the weights softmax(-l / beta') over the step: pairs that cost little
   weigh more. Despite the name this is the optimistic side, not the worst case.
2. The paper's mean is over the batch. `coupling: step` takes it over the optimiser step, however
   that is split. The authors' code takes it over the micro-batch of one device and averages the
   results, and so does `coupling: micro_batch`: there the update depends on the split, and a pair
   alone in its micro-batch gets plain DPO. Ours weighs micro-batches by their number of groups.
3. The authors' code takes the logarithm of a mean of exponentials, which underflows for small
   beta'; here it is one log-sum-exp. Their switch is off by default (`mode_loss: mean` is DPO).
4. On a list, l is the mean over the group's preferred pairs (ours), and groups compete.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("dr_dpo")
class DrDPO(Objective):
    """DPO that trusts the pairs of a step the more, the better the policy fits them already."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"
    couples_groups: ClassVar[bool] = decided_by(lambda owner: owner.coupling == "step")
    couples_micro_batch: ClassVar[bool] = decided_by(lambda owner: owner.coupling == "micro_batch")

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    beta_prime: float = Field(default=1.0, gt=0)
    """Temperature of the weights, in nats, > 0: small discounts suspected flips more, large comes
    close to plain DPO. The paper tries 1, 2, 3 and 5."""
    coupling: Literal["step", "micro_batch"] = "step"
    """Among which groups the weights are shared out: those of the optimiser step, as in the paper,
    or of each micro-batch, as in the authors' code."""

    def statistic(self, inputs: ObjectiveInputs) -> Float[Tensor, "G C"]:
        """The DPO loss of each group, and 1 where it is counted."""
        losses, counted = self._dpo(inputs)
        return torch.stack([losses, counted.to(losses.dtype)], dim=1).detach()

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups, each that of the whole step: 0 and not counted where all tie."""
        losses, counted = self._dpo(inputs)
        step = inputs.step_statistics
        if step is None or self.coupling == "micro_batch":
            coupled = self._soft_minimum(losses, counted).expand_as(losses)
        else:
            of_step, counted_in_step = step[:, 0].to(losses.dtype), step[:, 1] > 0
            total = self._soft_minimum(of_step, counted_in_step)
            # Softmax weights times the number of groups. The bound is theirs; it keeps groups that
            # are not counted from overflowing.
            most = math.log(step.shape[0])
            weights = ((total - losses.detach()) / self.beta_prime).clamp(max=most).exp()
            coupled = total + weights * (losses - losses.detach())
        return ObjectiveOutput(
            losses=coupled.masked_fill(~counted, 0.0),
            counted=counted,
            rewards=(self.beta * inputs.log_ratios()).detach(),
            metrics={},
        )

    def _dpo(self, inputs: ObjectiveInputs) -> tuple[Float[Tensor, " G"], Bool[Tensor, " G"]]:
        margins = pairwise_differences(self.beta * inputs.log_ratios())
        pairs = preferred_pairs(inputs.scores, inputs.where)
        losses = masked_mean(-F.logsigmoid(margins), pairs)
        return losses, pairs.flatten(start_dim=1).any(dim=1)

    def _soft_minimum(
        self, losses: Float[Tensor, " _"], counted: Bool[Tensor, " _"]
    ) -> Float[Tensor, ""]:
        """The paper's mean over the counted losses, between the least of them and their mean."""
        # Counted from the least of them, which loses no digits where all cost much.
        least = losses.detach().masked_fill(~counted, torch.inf).amin()
        exponents = ((least - losses) / self.beta_prime).masked_fill(~counted, -torch.inf)
        num_counted = counted.sum().clamp(min=1).to(losses.dtype)
        return least - self.beta_prime * (exponents.logsumexp(dim=0) - num_counted.log())
