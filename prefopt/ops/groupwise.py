"""Gradients of a trained output projection in one pass over its logits, for sums over groups.

Three products with the projection instead of the four of `tiled_target_logps`: where the loss of a
group needs no other group, its derivative is known while the group's logits are still there.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.ops.tiled_head import HeadGradients, LogitSettings, TiledHead, without_autocast


def groupwise_loss(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    *,
    num_tokens_per_group: tuple[int, ...],
    coefficients: Callable[[int, int, Float[Tensor, " n"]], Float[Tensor, " n"]],
    num_tokens_per_tile: int,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, ""]]:
    """Log-probs, and a scalar whose backward pass is that of a loss that is a sum over groups.

    While the logits of whole groups are there, the loss says what it wants of them: no logits are
    recomputed, except those of a group that is larger than a tile.

    Args:
        hidden: last hidden states at the positions that predict the targets, group by group.
        targets: token ids.
        weight: of the output projection.
        bias: of the output projection.
        num_tokens_per_group: how many of the N tokens each group has.
        coefficients: of groups start to stop (exclusive) and the log-probs of their tokens, the
            derivative of the loss by each of these. Called once for every group, in order, with
            gradients enabled and log-probs that have no history.
        num_tokens_per_tile: at least 1.
        scale: as in `tiled_target_logps`.
        softcap: as in `tiled_target_logps`.

    Returns:
        log-probs of the targets, in nats, without gradient; and a scalar that is 0.0. Its backward
        pass gives hidden, weight and bias the gradient of the loss times the scalar's own, once.
    """
    assert sum(num_tokens_per_group) == hidden.shape[0], "every token belongs to a group"
    settings = LogitSettings.of(
        hidden, scale=scale, softcap=softcap, num_tokens_per_tile=num_tokens_per_tile
    )
    return _of_groups(hidden, weight, bias, targets, settings, num_tokens_per_group, coefficients)


class _Groupwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: LogitSettings,
        num_tokens_per_group: tuple[int, ...],
        coefficients: Callable[[int, int, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        logps = hidden.new_empty(hidden.shape[0], dtype=settings.exact_dtype)
        gradients = HeadGradients(
            hidden, weight, bias, is_wanted=ctx.needs_input_grad[:3], dtype=settings.exact_dtype
        )
        ends = [0, *accumulate(num_tokens_per_group)]
        with without_autocast(hidden):
            head = TiledHead(weight, bias, settings, hidden.shape[0])
            for start, stop in _runs(num_tokens_per_group, settings.num_tokens_per_tile):
                parts = list(settings.tiles(ends[start], ends[stop]))
                for part in parts:
                    logps[part] = head.logps(hidden[part], targets[part])
                with torch.enable_grad():
                    factors = coefficients(start, stop, logps[ends[start] : ends[stop]].detach())
                # The last tile first: its logits are still there. Most runs have no other.
                for part in reversed(parts):
                    if part is not parts[-1]:
                        head.logps(hidden[part], targets[part])
                    own = factors[part.start - ends[start] : part.stop - ends[start]]
                    gradients.add(part, head.slopes(targets[part]), hidden[part], own.detach())
        ctx.gradients = gradients
        ctx.mark_non_differentiable(logps)
        return logps, logps.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the backward pass of a groupwise loss runs once"
        gradients: HeadGradients = ctx.gradients
        ctx.gradients = None
        gradients.scale_(grad)
        return *gradients.rounded(), None, None, None, None


_of_groups: Callable[..., tuple[Tensor, Tensor]] = _Groupwise.apply


def _runs(num_tokens_per_group: tuple[int, ...], limit: int) -> list[tuple[int, int]]:
    """Starts and ends of runs of groups: as many as fit the limit together, at least one."""
    runs, start, num_tokens = [], 0, 0
    for group, num in enumerate(num_tokens_per_group):
        if group > start and num_tokens + num > limit:
            runs.append((start, group))
            start, num_tokens = group, 0
        num_tokens += num
    return [*runs, (start, len(num_tokens_per_group))] if num_tokens_per_group else []
