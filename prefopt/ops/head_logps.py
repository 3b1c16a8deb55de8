"""Log-probs of tokens straight from hidden states, with gradients, in memory for a tile of logits.

In units of one product of all N hidden states with the projection: without gradient 1; with a
frozen projection 2, none of them in the backward pass; with one that is trained 4, of which the
backward pass recomputes one. `prefopt.ops.groupwise` needs 3, but has to know the loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.ops.tiled_head import HeadGradients, LogitSettings, TiledHead, without_autocast


def tiled_target_logps(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    *,
    num_tokens_per_tile: int,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, " N"]:
    """Log-probs of the targets, in nats, projecting a tile of hidden states at a time.

    No more than a tile's logits exist at any time, in forward or backward pass. Gradients are those
    of log_softmax; there are no second derivatives. With a frozen projection the backward pass
    does not touch its weight.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        targets: token ids.
        weight: of the output projection.
        bias: of the output projection.
        num_tokens_per_tile: at least 1.
        scale: what the projected values are multiplied by.
        softcap: c in c * tanh(x / c), which is then applied; None for none.
    """
    settings = LogitSettings.of(
        hidden, scale=scale, softcap=softcap, num_tokens_per_tile=num_tokens_per_tile
    )
    is_trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and is_trained:
        return _with_recomputed_logits(hidden, weight, bias, targets, settings)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return _with_unit_gradient(hidden, weight, bias, targets, settings)
    with torch.no_grad():
        return _logps(hidden, weight, bias, targets, settings)


def _logps(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: LogitSettings
) -> Tensor:
    logps = hidden.new_empty(hidden.shape[0], dtype=settings.exact_dtype)
    with without_autocast(hidden):
        head = TiledHead(weight, bias, settings, hidden.shape[0])
        for part in settings.tiles(0, hidden.shape[0]):
            logps[part] = head.logps(hidden[part], targets[part])
    return logps


class _UnitGradient(torch.autograd.Function):
    """Saves d logp / d hidden of every token, which no loss of the log-probs can change."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: LogitSettings,
    ) -> Tensor:
        logps = hidden.new_empty(hidden.shape[0], dtype=settings.exact_dtype)
        unit = torch.empty_like(hidden)
        with without_autocast(hidden):
            head = TiledHead(weight, bias, settings, hidden.shape[0])
            for part in settings.tiles(0, hidden.shape[0]):
                logps[part] = head.logps(hidden[part], targets[part])
                unit[part] = head.slopes(targets[part]).hidden_gradient()
        ctx.save_for_backward(unit)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (unit,) = ctx.saved_tensors
        return (grad.unsqueeze(1) * unit).to(unit.dtype), None, None, None, None


class _Recomputed(torch.autograd.Function):
    """Keeps no logits, and projects a second time in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: LogitSettings,
    ) -> Tensor:
        # The parameters themselves, not copies: a sharded wrapper fills them again by then.
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.settings = settings
        return _logps(hidden, weight, bias, targets, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        settings: LogitSettings = ctx.settings
        with without_autocast(hidden):
            head = TiledHead(weight, bias, settings, hidden.shape[0])
            gradients = HeadGradients(
                hidden, weight, bias, is_wanted=ctx.needs_input_grad[:3], dtype=settings.exact_dtype
            )
            for part in settings.tiles(0, hidden.shape[0]):
                head.logps(hidden[part], targets[part])
                gradients.add(part, head.slopes(targets[part]), hidden[part], grad[part])
        return *gradients.rounded(), None, None


_with_unit_gradient: Callable[..., Tensor] = _UnitGradient.apply
_with_recomputed_logits: Callable[..., Tensor] = _Recomputed.apply
