"""Draws that belong to a row, not to the batch that it happens to be generated in."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper


class RowSampler(LogitsProcessor):
    """Leaves of each row the one token that its own uniform number picks from the distribution.

    Greedy decoding after it is sampling. transformers draws from one generator for a whole batch,
    so that a row's answer would depend on its neighbours; here row i at step t inverts the
    cumulative distribution at u[i, t], which follows from the row's seed alone.
    """

    def __init__(
        self,
        uniforms: Float[Tensor, "B T"],
        temperatures: Sequence[float],
        *,
        width: int,
        top_k: int,
        top_p: float,
    ) -> None:
        """Set the draws of a batch.

        Args:
            uniforms: in [0, 1), a number per row and step.
            temperatures: per row; 0 takes the likeliest token.
            width: tokens of the padded prompts, so that steps can be counted.
            top_k: draw from so many of the likeliest tokens; 0 from all.
            top_p: draw from the likeliest tokens that together have this probability.
        """
        self._uniforms = uniforms.double()
        self._temperatures = torch.tensor(temperatures, device=uniforms.device)
        self._width = width
        self._warpers: list[LogitsProcessor] = [TopKLogitsWarper(top_k)] if top_k else []
        self._warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []

    def __call__(
        self, input_ids: Int[Tensor, "B L"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """Logits that are -inf but at one token of each row that is drawn."""
        is_drawn = self._temperatures > 0
        drawn = scores[is_drawn].float() / self._temperatures[is_drawn, None]
        for warp in self._warpers:
            drawn = warp(input_ids[is_drawn], drawn)
        step = input_ids.shape[1] - self._width
        tokens = tokens_at(drawn, self._uniforms[is_drawn, step])
        kept = torch.full_like(drawn, -torch.inf).scatter(1, tokens[:, None], 0.0)
        result = scores.clone()
        result[is_drawn] = kept.to(scores.dtype)
        return result


def tokens_at(logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The first token whose cumulative probability exceeds the row's number in [0, 1)."""
    sums = logits.double().softmax(1).cumsum(1)
    total = sums[:, -1:]
    tokens = torch.searchsorted(sums, uniforms.double()[:, None] * total, right=True)
    # Rounding may bring the product up to the total, behind which nothing has any probability.
    last = torch.searchsorted(sums, total.contiguous())
    return torch.minimum(tokens, last)[:, 0]


def uniforms_of(seeds: Sequence[int], num_steps: int) -> Float[Tensor, "B T"]:
    """Numbers in [0, 1) per row and step, the same on every device."""
    rows = [
        torch.rand(num_steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows)
