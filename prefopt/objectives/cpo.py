"""CPO: a logistic loss on summed log-probs without a reference, and NLL of what is preferred.

Paper: Xu et al., Contrastive Preference Optimization, 2024, arxiv.org/abs/2401.08417
Formula: -log sigmoid(beta log pi(y_w|x) - beta log pi(y_l|x)) + nll_weight NLL(y_w)

1. The NLL is the mean over all tokens of the preferred responses of the optimiser step, as in the
   authors' code, which takes it over a device's batch. It has this denominator of its own, so the
   split of a step does not matter. A sum over each response would weigh more by its length.
2. The other losses of the authors' code have names of their own here: `simpo`, `slic`.
3. On a list the preference term is the mean over its preferred pairs, and the NLL is that of every
   response preferred to another; the paper has pairs only.

The paper's text was not read: the form is that of the authors' code and of trl.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean, masked_sum
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term


@register("cpo")
class CPO(Objective):
    """Make the preferred response more likely than the other one, and likely at all."""

    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of summed log-prob, > 0; a small beta widens the margin further."""
    nll_weight: float | None = Field(default=1.0, gt=0)
    """Weight of the NLL per token of preferred responses, > 0; null leaves the term out."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        counted = pairs.flatten(start_dim=1).any(dim=1)
        losses = masked_mean(-F.logsigmoid(self.beta * pairwise_differences(logps)), pairs)
        terms = None
        if self.nll_weight is not None:
            preferred = pairs.any(dim=2)
            nll = Term(
                losses=masked_sum(-logps, preferred),
                weight=masked_sum(inputs.num_tokens.to(losses.dtype), preferred),
                coefficient=self.nll_weight,
            )
            terms = {"preference": Term(losses=losses, weight=counted.to(losses.dtype)), "nll": nll}
            losses = losses + nll.coefficient * nll.losses
        return ObjectiveOutput(
            losses=losses,
            counted=counted,
            rewards=(self.beta * logps).detach(),
            metrics={},
            terms=terms,
        )
