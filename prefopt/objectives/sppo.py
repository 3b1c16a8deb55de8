"""SPPO: a regression of each log-ratio on how often the response wins.

Paper: Wu et al., Self-Play Preference Optimization, 2024, arxiv.org/abs/2405.00675
Formula: 1/2 [(h_w - (p_w - 1/2) / beta)^2 + (h_l - (p_l - 1/2) / beta)^2], h = log(pi / ref)

The paper's text was not read; this is the form of the authors' code (github.com/uclaml/SPPO), whose
beta is 1 / eta of the paper. The paper renews data and reference in each of three iterations; a run
here is one of them.

1. `win_prob: hard` takes p_w = 1 and p_l = 0, as trl's `sppo_hard` does, which leaves the 1/2 out.
   On a list the loss is the mean over its preferred pairs.
2. `win_prob: scores` takes p_k = mean over j of sigmoid(s_k - s_j), over all responses of the list,
   k itself included. As in the authors' code only the best and the worst are trained, while the
   paper's objective is over all responses.
3. Ours: where several share the best (or worst) score, each gets its part of that one square; where
   all tie, p = 1/2 pulls them to the reference. A response alone has met nobody and is not counted.
4. Targets are hundreds of nats at the authors' beta, and gradients grow with them: keep clipping.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.pairs import best_response, pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("sppo")
class SPPO(Objective):
    """Bring log-ratios to (win probability - 1/2) / beta."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = decided_by(
        lambda owner: "graded" if owner.win_prob == "scores" else "preferred_pairs"
    )

    beta: float = Field(default=0.001, gt=0)
    """Sets the targets of the log-ratios, at most 1 / (2 beta) nats either way, > 0; a large beta
    keeps the policy near the reference."""
    win_prob: Literal["hard", "scores"] = "hard"
    """hard: the preferred response of a pair always wins. scores: a win is as likely as the sigmoid
    of the difference of scores, so they should be log-odds, such as those of PairRM."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where nothing was compared (see the notes)."""
        log_ratios = inputs.log_ratios()
        if self.win_prob == "hard":
            pairs = preferred_pairs(inputs.scores, inputs.where)
            target = 1 / (2 * self.beta)
            preferred = (log_ratios - target).square().unsqueeze(2)
            rejected = (log_ratios + target).square().unsqueeze(1)
            losses = masked_mean((preferred + rejected) / 2, pairs)
            counted = pairs.flatten(start_dim=1).any(dim=1)
        else:
            targets = (self._win_probs(inputs).to(log_ratios.dtype) - 0.5) / self.beta
            squares = (log_ratios - targets).square()
            counted = inputs.where.sum(dim=1) > 1
            compared = inputs.where & counted.unsqueeze(1)
            best = masked_mean(squares, best_response(inputs.scores, compared))
            worst = masked_mean(squares, best_response(-inputs.scores, compared))
            losses = (best + worst) / 2
        return ObjectiveOutput(
            losses=losses,
            counted=counted,
            rewards=(self.beta * log_ratios).detach(),
            metrics={},
        )

    def _win_probs(self, inputs: ObjectiveInputs) -> Float[Tensor, "G K"]:
        """Mean probability of a win over each response of the group, itself included."""
        where = inputs.where
        scores = inputs.scores.masked_fill(~where, 0.0)
        wins = torch.sigmoid(pairwise_differences(scores)).masked_fill(~where.unsqueeze(1), 0.0)
        return wins.sum(dim=2) / where.sum(dim=1, keepdim=True).clamp(min=1)
