"""BCPG-NSA: an offline policy gradient that spares the correct steps of incorrect responses.

Paper: Yang et al., Policy Optimization with Negative Sample Augmentation, 2025,
arxiv.org/abs/2505.14403
Formula: -mean over the K responses of (sum of b_t (s - mean s) log pi(y_t) - tau / 2 h^2) / n,
h = log(pi / ref) of the response, n its number of tokens, b_t = beta on tokens of a correct step of
a response that scores below its group's mean, else 1

1. The paper's text was not read; this is the form of a secondary source. The paper maximises, here
   the negative is minimised. n divides the square of h too, as printed.
2. Which tokens are in a correct step is data: token weights of 1 there and 0 elsewhere. With
   beta = 1 nothing of it is needed, and the objective is the paper's BCPG.
3. The reference is the model that the responses were sampled from.
4. Groups whose scores all tie are not counted, since the paper drops prompts that all or none of
   the responses get right; the square alone would pull these to the reference.
5. The gradient of a response vanishes at h = (s - mean s) / tau if its b_t are 1. The reward is
   tau h, which is then the advantage.
"""

from typing import ClassVar

from pydantic import Field

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.pairs import preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("bcpg_nsa")
class BCPGNSA(Objective):
    """Raise responses by how far they score above the mean of their group, and lower the others."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "graded"
    needs_tokens: ClassVar[bool] = decided_by(lambda owner: owner.beta != 1)
    needs_token_weights: ClassVar[bool] = decided_by(lambda owner: owner.beta != 1)

    tau: float = Field(default=1e-3, gt=0)
    """Strength of the pull to the reference, in score per nat, > 0: log-ratios tend to
    (score - mean score) / tau."""
    beta: float = Field(default=0.5, ge=-1, le=1)
    """How much of a low score the correct steps of its response bear, in [-1, 1]: 1 all of it, 0
    nothing; below 0 they are reinforced. Anything but 1 needs token weights."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        log_ratios = inputs.log_ratios()
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        scores = inputs.scores.to(logps.dtype).masked_fill(~inputs.where, 0.0)
        advantages = scores - masked_mean(scores, inputs.where).unsqueeze(1)
        if self.beta != 1:
            tokens = inputs.token_inputs()
            weights = tokens.read("weights").to(logps.dtype)
            spared = inputs.sum_over_tokens(weights * tokens.policy_logps)
            logps = logps - (1 - self.beta) * spared.masked_fill(advantages >= 0, 0.0)
        gains = advantages * logps - self.tau / 2 * log_ratios**2
        pairs = preferred_pairs(inputs.scores, inputs.where)
        counted = pairs.flatten(start_dim=1).any(dim=1)
        selected = inputs.where & counted.unsqueeze(1)
        return ObjectiveOutput(
            losses=masked_mean(-gains / inputs.num_tokens.clamp(min=1), selected),
            counted=counted,
            rewards=(self.tau * log_ratios).detach(),
            metrics={},
        )
