"""Gradient ascent: maximum likelihood with the sign turned, the plainest way to forget.

Paper: as given in Zhang et al., Negative Preference Optimization, 2024, arxiv.org/abs/2404.05868
Formula: E_F[log pi(y|x)]

F are the responses of score 0; those of score 1 are not counted. It is what `npo` becomes as its
beta goes to 0. The loss is negative and has no lower bound: it goes on when all is forgotten, at
the expense of the rest of the model. It is here to compare with.

1. The formula is a mean over responses of sums over tokens (`sequence_sum`). Code in use turns the
   sign of the usual loss, a mean over the tokens of a batch (`token_mean`); here it is over those
   of the whole optimiser step.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.unlearning import (
    forgotten,
    mean_over_responses,
    mean_over_tokens,
    unlearning_output,
    warning_of_unread,
)
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("grad_ascent")
class GradAscent(Objective):
    """Forget the responses of score 0, without end."""

    needs: ClassVar[Needs] = "labels"

    reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    """token_mean: mean over all forgotten tokens of the step.
    sequence_sum: sum over the tokens of a response, mean over responses; a gradient that is larger
    by about the number of tokens."""

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """Says so if there is something to retain, which would have no effect."""
        return warning_of_unread(scores, where)

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where nothing is to be forgotten."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        to_forget = forgotten(inputs.scores, inputs.where)
        if self.reduction == "token_mean":
            forget = mean_over_tokens(logps, to_forget, inputs.num_tokens)
        else:
            forget = mean_over_responses(logps, to_forget)
        return unlearning_output(inputs, {"forget": forget}, logps)
