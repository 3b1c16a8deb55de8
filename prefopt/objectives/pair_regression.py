"""Pair regression: a square that brings a difference of log-ratios to a given number.

Paper: Gao et al., REBEL, 2024, arxiv.org/abs/2404.16767, with target scores; Le et al., iREPO,
    2024, arxiv.org/abs/2405.15230, with target win_prob
Formula: (a (h_w - h_l) - target)^2, h = log(pi / ref), a = scale, target = s_w - s_l,
    or log(p / (1 - p)) with p = s_w / (s_w + s_l), or a constant

The papers' texts were not read, iREPO's but for its abstract: this is a generic form that covers
theirs. Both refresh data and reference as they go; one run here is one of their iterations.

1. REBEL's 1 / eta and iREPO's beta are `scale`. A factor before the scores would only change the
   scale and the size of the loss, so there is none.
2. scale 1 and target 1 / (2 tau) are IPO on sums, `ipo` with `length_normalized: false`.
3. On a list the loss is the mean over its preferred pairs. Equal scores make no pair, though
   a target of 0 would be defined for them.
4. The gradient is not bounded: keep clipping.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, decided_by, register
from prefopt.ops.pairs import pairwise_differences, preferred_pairs
from prefopt.ops.reductions import masked_mean
from prefopt.types import ObjectiveInputs, ObjectiveOutput


@register("pair_regression")
class PairRegression(Objective):
    """Bring scaled differences of log-ratios to what scores, win probabilities or a number say."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = decided_by(
        lambda owner: "graded" if isinstance(owner.target, str) else "preferred_pairs"
    )
    score_range: ClassVar[tuple[float, float] | None] = decided_by(
        lambda owner: (0.0, 1.0) if owner.target == "win_prob" else None
    )

    scale: float = Field(default=1.0, gt=0)
    """Target units per nat of log-ratio, > 0; a large scale keeps the policy near the reference."""
    target: Literal["scores", "win_prob"] | Annotated[float, Field(gt=0)] = "scores"
    """scores: the difference of the scores. win_prob: scores are shares of wins, in [0, 1], such as
    0.8 and 0.2, and the target is the logit of s_w / (s_w + s_l). A number > 0: that, for any pair;
    with scale 1 it is in nats."""
    clip: float | None = Field(default=None, gt=0, lt=0.5, validate_default=True)
    """With target: win_prob, and required there: win probabilities are kept at or below 1 - clip,
    since the logit of 1 is infinite; in (0, 0.5), such as 0.01. Null with any other target."""

    @field_validator("target", mode="wrap")
    @classmethod
    def _is_one_of_three(cls, value: object, check: Callable[[object], object]) -> object:
        # Pydantic alone would name its own branches of the union, and not what can be written.
        try:
            return check(value)
        except ValidationError:
            raise ValueError("should be 'scores', 'win_prob' or a number above 0") from None

    @field_validator("clip")
    @classmethod
    def _goes_with_win_prob(cls, value: float | None, info: Any) -> float | None:
        is_read = info.data.get("target") == "win_prob"
        if is_read and value is None:
            raise ValueError("should be a number such as 0.01, as target is win_prob")
        if not is_read and value is not None:
            raise ValueError("should be left out, as only target: win_prob reads it")
        return value

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups: 0 and not counted where all responses tie."""
        rewards = self.scale * inputs.log_ratios()
        pairs = preferred_pairs(inputs.scores, inputs.where)
        targets = self._targets(inputs.scores.to(rewards.dtype))
        # Outside the pairs margins may be huge and targets NaN: mask them before squaring.
        off = (pairwise_differences(rewards) - targets).masked_fill(~pairs, 0.0)
        return ObjectiveOutput(
            losses=masked_mean(off.square(), pairs),
            counted=pairs.flatten(start_dim=1).any(dim=1),
            rewards=rewards.detach(),
            metrics={},
        )

    def _targets(self, scores: Float[Tensor, "G K"]) -> Float[Tensor, "G K K"]:
        """The number for each pair; meaningless where i is not preferred to j."""
        if isinstance(self.target, float):
            return torch.full_like(pairwise_differences(scores), self.target)
        if self.clip is None:
            return pairwise_differences(scores)
        # The logit of s_i / (s_i + s_j) is log s_i - log s_j, infinite where s_j is 0.
        limit = math.log1p(-self.clip) - math.log(self.clip)
        return pairwise_differences(scores.log()).clamp(max=limit)
