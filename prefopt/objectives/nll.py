"""NLL: maximum likelihood of some or all responses, the loss of supervised fine-tuning.

Paper: the standard language-modelling loss; as a term beside a preference loss, Pang et al.,
Iterative Reasoning Preference Optimization, 2024, arxiv.org/abs/2404.19733, eq. 2
Formula: -log pi(y|x), its mean or sum over tokens, mean over the selected responses

The reward of a response is its log-prob: the policy ranks responses by it.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import best_response, preferred_responses
from prefopt.ops.reductions import masked_mean, masked_sum
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term


@register("nll")
class NLL(Objective):
    """Make the selected responses likely."""

    needs: ClassVar[Needs] = "responses"

    of: Literal["preferred", "best", "all"] = "preferred"
    """Which responses to learn: those scored above another of their group (a response alone: those
    scored above 0), the top-scored one (all that share the top), or every response."""
    reduction: Literal["sequence_mean", "sequence_sum", "token_mean"] = "sequence_mean"
    """sequence_mean: mean over tokens of a response, then over responses, then over groups.
    sequence_sum: sum over tokens instead, so long responses weigh more.
    token_mean: mean over all selected tokens of the step, whatever group they are in."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where no response is selected."""
        selected = self._selected(inputs)
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        if self.reduction == "sequence_mean":
            losses = masked_mean(-logps / inputs.num_tokens.clamp(min=1), selected)
        elif self.reduction == "sequence_sum":
            losses = masked_mean(-logps, selected)
        else:
            losses = masked_sum(-logps, selected)
        terms = None
        if self.reduction == "token_mean":
            weight = masked_sum(inputs.num_tokens.to(losses.dtype), selected)
            terms = {"nll": Term(losses=losses, weight=weight)}
        return ObjectiveOutput(
            losses=losses,
            counted=selected.any(dim=1),
            rewards=logps.detach(),
            metrics={},
            terms=terms,
        )

    def _selected(self, inputs: ObjectiveInputs) -> Bool[Tensor, "G K"]:
        if self.of == "all":
            return inputs.where
        choose = best_response if self.of == "best" else preferred_responses
        return choose(inputs.scores, inputs.where)
