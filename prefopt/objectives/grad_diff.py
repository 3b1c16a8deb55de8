"""Gradient difference: gradient ascent on what is to be forgotten, descent on what is retained.

Paper: as given in Zhang et al., Negative Preference Optimization, 2024, arxiv.org/abs/2404.05868
Formula: E_F[log pi(y|x)] - retain_weight E_R[log pi(y|x)]

F are the responses of score 0, R those of score 1. The forget term has no lower bound, so the loss
is negative sooner or later, and in the end outweighs whatever is retained.

1. Each term has a denominator of its own over the whole optimiser step: the tokens of its side with
   `token_mean`, as in code that subtracts two cross entropies, and the responses of its side with
   `sequence_sum`, as in the formula.
"""

from typing import ClassVar, Literal

from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.unlearning import (
    forgotten,
    mean_over_responses,
    mean_over_tokens,
    retained,
    unlearning_output,
)
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("grad_diff")
class GradDiff(Objective):
    """Forget the responses of score 0, without end; retain those of score 1."""

    needs: ClassVar[Needs] = "labels"

    retain_weight: float = Field(default=1.0, gt=0)
    """Weight of the NLL of what is retained, > 0."""
    reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    """token_mean: means over all forgotten and over all retained tokens of the step.
    sequence_sum: sums over the tokens of a response, means over responses."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where nothing is to be forgotten or retained."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        to_forget = forgotten(inputs.scores, inputs.where)
        to_retain = retained(inputs.scores, inputs.where)
        weight = self.retain_weight
        if self.reduction == "token_mean":
            terms = {
                "forget": mean_over_tokens(logps, to_forget, inputs.num_tokens),
                "retain": mean_over_tokens(-logps, to_retain, inputs.num_tokens, weight),
            }
        else:
            terms = {
                "forget": mean_over_responses(logps, to_forget),
                "retain": mean_over_responses(-logps, to_retain, weight),
            }
        return unlearning_output(inputs, terms, logps)
