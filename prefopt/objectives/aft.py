"""AFT: rank responses by their mean log-prob, and stop pushing the bad ones at a boundary.

Paper: Wang et al., Making Large Language Models Better Reasoners with Alignment, 2023,
arxiv.org/abs/2309.02144 (of the text only the abstract was read; this is the boundary form of
secondary sources)
Formula: log(1 + sum over s_i > s_j of exp(l_j - l_i) + exp(T_ij - l_j)), l = log pi / tokens,
T_ij = 2 l_p - 2 beta - l_i a constant, p the one with the lowest l of all that score above j

The two terms of a pair balance at l_j = l_p - beta: a rejected response sinks beta nats per token
below the least likely of those above it, and no deeper. Without the boundary it sinks for ever.

1. T has no gradient. That it is so in the paper was not verified; with one, it would pull l_i.
2. The paper has binary labels, and a form for ranked lists that was not read. Here a response is
   held against all that score above it, which on binary labels is the paper's set of correct
   answers. Ties make no pair. The sum over a list's pairs stays inside one logarithm.
3. The paper tunes beta on held-out data and calls it sensitive; its grid is not verified, so there
   is no default. Whether it keeps a likelihood term is not verified: weighted_sum adds nll.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("aft")
class AFT(Objective):
    """Rank responses by mean log-prob, and let the worse ones sink no deeper than a boundary."""

    needs: ClassVar[Needs] = "preferred_pairs"

    beta: float = Field(gt=0)
    """How far below the least likely better response a rejected one settles, in nats per token,
    > 0; large pushes it further down."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        logps = inputs.policy_logps.masked_fill(~inputs.where, 0.0)
        means = logps / inputs.num_tokens.clamp(min=1)
        pairs = preferred_pairs(inputs.scores, inputs.where)
        ranking = -pairwise_differences(means)
        boundary = self._floors(means.detach(), pairs) - means.unsqueeze(1)
        # exp(0) is the 1 of the formula; it also keeps a group without pairs finite.
        exponents = torch.stack([ranking, boundary], dim=1).masked_fill(
            ~pairs.unsqueeze(1), -torch.inf
        )
        exponents = torch.cat([torch.zeros_like(means[:, :1]), exponents.flatten(start_dim=1)], 1)
        return ObjectiveOutput(
            losses=exponents.logsumexp(dim=1),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=means.detach(),
            metrics={},
        )

    def _floors(
        self, means: Float[Tensor, "G K"], pairs: Bool[Tensor, "G K K"]
    ) -> Float[Tensor, "G K K"]:
        """T at [g, i, j]; infinite where no response scores above j."""
        lowest_above = means.unsqueeze(2).masked_fill(~pairs, torch.inf).amin(dim=1)
        return 2 * lowest_above.unsqueeze(1) - 2 * self.beta - means.unsqueeze(2)
