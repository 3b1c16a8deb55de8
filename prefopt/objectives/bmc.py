"""BMC: DPO whose log-ratios weigh the tokens in which best and worst differ, unlikely ones most.

Paper: Jiang et al., Bridging and Modeling Correlations, 2024, arxiv.org/abs/2408.07471, eq. 5-6
Formula: -log sigmoid(beta (H_w - H_l)), H = sum of w_t log(pi / ref)(y_t),
w_t = 1 + min(1 / pi(y_t), delta) where y_t is in the diff of the two responses, else 1; w detached

1. This is the modelling half. The other one, a language model that rewrites the rejected response
   into a closer winner, makes data and happens outside.
2. The paper's text was not read; this is the form of its code and of secondary sources.
   `reference_weight: policy` weighs both log-probs of a token by the policy's w, as the formula
   does; that the printed one does was not verified. `own` is the authors' code: the reference's
   log-prob is weighed by 1 / ref(y_t) in place of 1 / pi(y_t), and H is no sum of log-ratios.
3. 1 / pi is at least 1: for delta <= 1 every differing token weighs 1 + delta. As delta goes to 0
   this becomes DPO.
4. The authors take the diff over the token ids of prompt and response, without stop-words that are
   one token; here it is what `tokens.differs` says of the responses. It is taken on the host, half
   a second for a pair of 2000 tokens: `training.dataloader_num_workers` does it beside training.
5. On a list the best response meets the worst one. Ties for best or worst give several such pairs,
   of which the mean is taken (ours); a diff is between two, so there it means little.
6. The reward is beta H, by which the loss ranks.
"""

import math
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import best_response, pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("bmc")
class BMC(Objective):
    """DPO of best and worst that looks hardest at unlikely tokens in which they differ."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"
    needs_tokens: ClassVar[bool] = True
    needs_diff: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0)
    """Reward per nat of weighed log-ratio, > 0; a large beta keeps the policy near the reference.
    The paper has 0.01 for chat and 0.05 for mathematics and questions."""
    delta: float = Field(default=2.0, gt=0)
    """Most that a differing token weighs beyond 1, > 0; the paper has 1.5 to 3."""
    reference_weight: Literal["policy", "own"] = "policy"
    """Whose probability weighs the reference's log-probs: the policy's, or the reference's own as
    in the authors' code."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie.

        Raises:
            ValueError: if no reference log-probs of tokens were given.
        """
        tokens = inputs.token_inputs()
        differs = tokens.read("differs")
        if tokens.reference_logps is None:
            raise ValueError("bmc needs reference log-probs of tokens; pass them with the tokens.")
        logps = tokens.policy_logps
        reference_logps = tokens.reference_logps.to(logps.dtype)
        weights = self._weights(logps.detach(), differs)
        if self.reference_weight == "policy":
            weighed = weights * (logps - reference_logps)
        else:
            own = self._weights(reference_logps, differs)
            weighed = weights * logps - own * reference_logps
        rewards = self.beta * inputs.sum_over_tokens(weighed)
        best = best_response(inputs.scores, inputs.where)
        worst = best_response(-inputs.scores, inputs.where)
        pairs = best.unsqueeze(2) & worst.unsqueeze(1)
        pairs = pairs & preferred_pairs(inputs.scores, inputs.where)
        return ObjectiveOutput(
            losses=masked_mean(-F.logsigmoid(pairwise_differences(rewards)), pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )

    def _weights(
        self, logps: Float[Tensor, " N"], differs: Bool[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        # 1 / p of an unlikely token overflows, so the lesser of the two is chosen by logarithms.
        return 1 + differs * (-logps).clamp(max=math.log(self.delta)).exp()
