"""NPO: make responses unlikely that are to be forgotten, ever less so as they are forgotten.

Paper: Zhang et al., Negative Preference Optimization: From Catastrophic Collapse to Effective
Unlearning, 2024, arxiv.org/abs/2404.05868
Formula: -(2 / beta) E_F log sigmoid(-beta log(pi / ref)) + retain_weight L_R,
L_R = 0, E_R[-log pi] or E_R[KL(ref || pi)]

F are the responses of score 0, R those of score 1. The gradient on log pi of a forgotten response,
2 sigmoid(beta log(pi / ref)), is 1 where the policy is the reference: that of gradient ascent. As
beta goes to 0 it stays 1.

1. The forget term is a mean over responses of sums over tokens, the retain term a mean over tokens,
   as in the authors' code: the longer the answers, the less `retain_weight` weighs.
2. The KL is that of the code, reference first; the paper prints the policy first. The code averages
   over all positions, prompts and padding among them; here it is the tokens of retained responses.
3. Equations 4 and 5 of version 1 lack a sign; its appendix A.1 has it, and so has the code.
4. open-unlearning has beta 1 in its class and 0.1 in its recipe. Code derived from MUSE reads raw
   logits instead of log-probs, which is another loss.
5. The authors pair each forgotten item with one retained item; here the step plan decides.
"""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.unlearning import (
    forgotten,
    mean_over_responses,
    mean_over_tokens,
    retained,
    unlearning_output,
    warning_of_unread,
)
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("npo")
class NPO(Objective):
    """Forget the responses of score 0, gently; retain those of score 1."""

    needs: ClassVar[Needs] = "labels"
    needs_reference: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = decided_by(lambda owner: owner.retain == "kl")
    needs_reference_distribution: ClassVar[bool] = decided_by(lambda owner: owner.retain == "kl")

    beta: float = Field(default=0.1, gt=0)
    """Per nat of log-ratio, > 0; a large beta stops pushing sooner, a small one is gradient
    ascent."""
    retain: Literal["none", "nll", "kl"] = "nll"
    """What keeps the rest of the model: nothing (responses of score 1 are not counted), the NLL of
    retained tokens, or the KL from the reference there, which looks at the whole vocabulary."""
    retain_weight: float = Field(default=1.0, gt=0)
    """Weight of the retain term, > 0; the paper tries up to 5 and finds about 2 best."""

    @model_validator(mode="after")
    def _a_weight_belongs_to_a_term(self, info: Any) -> "NPO":
        if self.retain == "none" and self.retain_weight != 1.0:
            key = f"{(info.context or {}).get('where', 'objective')}.retain_weight"
            raise UserError(f"{key}: has no effect with retain: none. Remove it, or set retain.")
        return self

    def responses_with_statistics(
        self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
    ) -> Bool[Tensor, "G K"]:
        """Those to be retained."""
        return retained(scores, where)

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """Says so if there is something to retain, which would have no effect."""
        return None if self.retain != "none" else warning_of_unread(scores, where)

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where nothing is to be forgotten or retained."""
        rewards = self.beta * inputs.log_ratios()
        to_forget = forgotten(inputs.scores, inputs.where)
        terms = {"forget": mean_over_responses(-2 / self.beta * F.logsigmoid(-rewards), to_forget)}
        if self.retain != "none":
            terms["retain"] = mean_over_tokens(
                self._retain_costs(inputs),
                retained(inputs.scores, inputs.where),
                inputs.num_tokens,
                coefficient=self.retain_weight,
            )
        return unlearning_output(inputs, terms, rewards)

    def _retain_costs(self, inputs: ObjectiveInputs) -> Float[Tensor, "G K"]:
        if self.retain == "nll":
            return -inputs.policy_logps
        return inputs.sum_over_tokens(inputs.token_inputs().read("reference_kl"))
