"""SimNPO: NPO on mean log-probs, without a reference.

Paper: Fan et al., Simplicity Prevails: Rethinking Negative Preference Optimization for LLM
Unlearning, 2024, arxiv.org/abs/2410.07163
Formula: -(2 / beta) E_F log sigmoid(-beta (lbar + gamma)) + retain_weight E_R[-log pi],
lbar = log pi(y|x) / |y|

F are the responses of score 0, R those of score 1. The gradient on log pi of a forgotten response,
2 sigmoid(beta (lbar + gamma)) / |y|, is at most 1 / |y| with gamma 0: never more than that of
gradient ascent on the mean over tokens.

1. gamma is inside beta, as in the code of the authors and of open-unlearning (`delta` there). The
   paper is said to have it outside: then its gamma is beta times ours. Its text was not read.
2. The authors weigh both terms, and their forget weight is below 1; ours is 1, so `retain_weight`
   is the ratio: 8 for their 0.125 and 1. The learning rate scales both.
3. The forget term is a mean over responses, the retain term a mean over tokens.
4. Their MUSE code reads raw logits instead of log-probs, and their WMDP code the mean over all
   tokens of a batch instead of that of each response; these are other losses.
"""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.unlearning import (
    forgotten,
    mean_over_responses,
    mean_over_tokens,
    retained,
    unlearning_output,
    warning_of_unread,
)
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("simnpo")
class SimNPO(Objective):
    """Forget the responses of score 0 token by token; retain those of score 1."""

    needs: ClassVar[Needs] = "labels"

    beta: float = Field(default=4.5, gt=0)
    """Per nat per token, > 0; a large beta stops pushing sooner. Published are 0.1 to 4.5."""
    gamma: float = Field(default=0.0, ge=0)
    """How far below 0 the mean log-prob must be for a response to count as half forgotten, in nats,
    >= 0; 0 in the published runs."""
    retain: Literal["none", "nll"] = "nll"
    """What keeps the rest of the model: nothing (responses of score 1 are not counted), or the NLL
    of retained tokens."""
    retain_weight: float = Field(default=1.0, gt=0)
    """Weight of the retain term relative to the forget term, > 0; about 8 for TOFU."""

    @model_validator(mode="after")
    def _a_weight_belongs_to_a_term(self, info: Any) -> "SimNPO":
        if self.retain == "none" and self.retain_weight != 1.0:
            key = f"{(info.context or {}).get('where', 'objective')}.retain_weight"
            raise UserError(f"{key}: has no effect with retain: none. Remove it, or set retain.")
        return self

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """Says so if there is something to retain, which would have no effect."""
        return None if self.retain != "none" else warning_of_unread(scores, where)

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where nothing is to be forgotten or retained."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        mean_logps = logps / inputs.num_tokens.clamp(min=1)
        costs = -2 / self.beta * F.logsigmoid(-self.beta * (mean_logps + self.gamma))
        terms = {"forget": mean_over_responses(costs, forgotten(inputs.scores, inputs.where))}
        if self.retain == "nll":
            to_retain = retained(inputs.scores, inputs.where)
            terms["retain"] = mean_over_tokens(
                -logps, to_retain, inputs.num_tokens, coefficient=self.retain_weight
            )
        return unlearning_output(inputs, terms, self.beta * mean_logps)
