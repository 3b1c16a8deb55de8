"""IPO: a squared loss that stops at a finite margin.

Paper: Azar et al., A General Theoretical Paradigm, 2023, arxiv.org/abs/2310.12036, eq. 17
Formula: (h_w - h_l - 1 / (2 tau))^2, h = log(pi / ref), per token if length_normalized

Two conventions are in use. Summed log-ratios, as the paper prints them: the original DPO repository
and OpenRLHF. Means per token: trl, whose comment reports that the authors confirmed them for the
published results, LLaMA-Factory and HALOs. The target is 1 / (2 tau) nats per response in the
first and per token in the second, so neither tau nor the learning rate carries over.

1. The reward is tau times the log-ratio that the loss reads, so that a margin of 1/2 is the target.
2. On a list the loss is the mean over its preferred pairs; the paper has pairs only.
"""

from typing import ClassVar

from pydantic import Field

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("ipo")
class IPO(Objective):
    """Bring the difference of log-ratios to 1 / (2 tau), and no further."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    tau: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference, > 0; the target margin is 1 / (2 tau) nats."""
    length_normalized: bool = True
    """Read log-ratios per token; False reads their sums, as the paper prints them."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        log_ratios = inputs.log_ratios()
        if self.length_normalized:
            log_ratios = log_ratios / inputs.num_tokens.clamp(min=1)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        # Differences outside the pairs may be huge; squaring them first could overflow.
        gaps = pairwise_differences(log_ratios).masked_fill(~pairs, 0.0)
        return ObjectiveOutput(
            losses=masked_mean((gaps - 1 / (2 * self.tau)) ** 2, pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=(self.tau * log_ratios).detach(),
            metrics={},
        )
