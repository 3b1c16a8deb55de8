"""D2O: a logistic loss of one disliked response against the mean of several others.

Paper: Duan et al., Negating Negatives, 2024, arxiv.org/abs/2403.03419 (the paper's text was not
read; this is the form of secondary sources, and no public code is known)
Formula: -log sigmoid((beta / K) sum_i h_i - alpha h_l), h = log(pi / ref), i = 1 ... K the others

1. In the paper y_l is a human-labelled negative and the y_i are K samples of the model itself. Here
   the scores say who is who: y_l scores worst in its group, the y_i are all that score above it.
2. If several share the worst score, the loss is the mean over them, each against the same others.
   Where all responses tie there is no y_l, and the group is not counted. Ours.
3. The paper allows two references, a more harmful one for the y_i and a more helpful one for y_l;
   its experiments set both to the same model, and so does this.
4. The logged reward is beta h for every response, so alpha is not seen in it. Ours.

On a pair with alpha = beta it is DPO.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("d2o")
class D2O(Objective):
    """Make the worst response less likely, held in place by the mean of the others."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Weight of the others' mean log-ratio, per nat, > 0; large holds them up more strongly."""
    alpha: float = Field(default=0.1, gt=0)
    """Weight of the worst response's log-ratio, per nat, > 0; large pushes it down harder."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        log_ratios = inputs.log_ratios()
        others = preferred_pairs(inputs.scores, inputs.where).any(dim=2)
        counted = others.any(dim=1)
        worst = inputs.where & ~others & counted.unsqueeze(1)
        held = self.beta * masked_mean(log_ratios, others)
        margins = held.unsqueeze(1) - self.alpha * log_ratios
        return ObjectiveOutput(
            losses=masked_mean(-F.logsigmoid(margins), worst),
            counted=counted,
            rewards=(self.beta * log_ratios).detach(),
            metrics={},
        )
