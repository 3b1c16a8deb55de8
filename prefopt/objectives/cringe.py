"""Cringe: likelihood for good responses, a contrast with likelier tokens for bad ones.

Paper: Adolphs et al., The CRINGE Loss, 2022, arxiv.org/abs/2211.05826
Formula: (sum of -log p(y_t) over tokens labelled 1 + alpha sum of softplus(log p(y_t) - log p(s_t))
over tokens labelled 0) / number of tokens, s_t drawn from the k likeliest tokens other than y_t

1. The paper's text was not read; this is the authors' code (ParlAI). Its denominator is all tokens
   of the batch, good and bad; here it is those of the optimiser step. So the share of bad tokens
   acts like alpha: balance the labels, or choose alpha by them.
2. Alternatives are drawn with temperature 1, anew in every step. With k = 1 there is no chance in
   it: s_t is the likeliest token other than y_t. Gradients reach both tokens; the authors' option
   that holds those of s_t back (`--ct-detach-positives`) is off by default and not here.
3. The end-of-sequence of a bad response is contrasted too, which favours longer responses.
4. The authors also have sequences without a label, which are learnt like good ones: label them 1.
5. No reference is involved. The reward of a response is its log-prob.
"""

from typing import ClassVar

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.contrast import contrastive_losses
from prefopt.ops.reductions import masked_sum
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term


@register("cringe")
class Cringe(Objective):
    """Make good responses likely, and each token of bad ones less likely than an alternative."""

    needs: ClassVar[Needs] = "labels"
    needs_tokens: ClassVar[bool] = True
    num_top_logits: ClassVar[int] = decided_by(lambda owner: owner.k + 1)

    alpha: float = Field(default=1.0, gt=0)
    """Weight of a bad token against a good one, > 0."""
    k: int = Field(default=1, ge=1)
    """How many of the likeliest tokens the alternative is drawn from, >= 1; 1 takes the first."""

    def responses_with_statistics(
        self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
    ) -> Bool[Tensor, "G K"]:
        """Only bad responses have their tokens contrasted."""
        return where & (scores == 0)

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups, sums over the tokens of their responses."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        contrasts = inputs.sum_over_tokens(
            contrastive_losses(inputs.token_inputs(), num_alternatives=self.k)
        )
        bad = self.responses_with_statistics(inputs.scores, inputs.where)
        likelihood = masked_sum(-logps, inputs.where & ~bad)
        losses = likelihood + self.alpha * masked_sum(contrasts, bad)
        num_tokens = masked_sum(inputs.num_tokens.to(losses.dtype), inputs.where)
        return ObjectiveOutput(
            losses=losses,
            counted=num_tokens > 0,
            rewards=logps.detach(),
            metrics={},
            terms={"cringe": Term(losses=losses, weight=num_tokens)},
        )
