"""DPOP: DPO with a penalty on a preferred response that falls below the reference.

Paper: Pal et al., Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive, 2024,
    arxiv.org/abs/2402.13228
Formula: -log sigmoid(m), m = beta (h_w - h_l - penalty max(0, log ref_w - log pi_w)),
    h = log(pi / ref)

The paper's text was not read, so its equation has no number here; this is the form that others
quote. `penalty` is its lambda, a word that Python keeps for itself.

1. The penalty stands within the sigmoid: it lowers the margin of its pair, and its slope fades
   where h_w - h_l is large enough to carry it.
2. Below the reference the slope of log pi_w is 1 + penalty times DPO's, above it is DPO's. The
   slope of log pi_l is DPO's at the same m.
3. At log pi_w = log ref_w the max has a kink, and here the slope of its flat side, that of DPO: all
   pairs begin there, so the first step is a step of DPO. The loss itself has no jump.
4. The reward is beta times the log-ratio, as in DPO; whether the authors log one with the penalty
   in it was not verified.
5. On a list the loss is the mean over its preferred pairs; the paper has pairs only. A response is
   penalised in each pair in which it is preferred, and in no other: of a list without ties, all
   but the worst are held near the reference, so a long list wants a smaller penalty.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("dpop")
class DPOP(Objective):
    """Widen the margin of DPO without letting the preferred response fall below the reference."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of log-ratio, > 0; a large beta keeps the policy near the reference."""
    penalty: float = Field(default=50.0, gt=0)
    """Nats taken off the margin per nat that the preferred response is below the reference, > 0;
    near 0 it is DPO, and a large one holds preferred responses at the reference or above."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        log_ratios = inputs.log_ratios()
        pairs = preferred_pairs(inputs.scores, inputs.where)
        # relu has slope 0 at 0, where every response stands before the first step.
        penalties = self.penalty * F.relu(-log_ratios)
        margins = self.beta * (pairwise_differences(log_ratios) - penalties.unsqueeze(2))
        return ObjectiveOutput(
            losses=masked_mean(-F.logsigmoid(margins), pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=(self.beta * log_ratios).detach(),
            metrics={},
        )
