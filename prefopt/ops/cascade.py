"""Attention over a row of shared prompts, in two parts that are merged exactly.

Every token attends within its own segment; every response also attends to its prompt; log-sum-exps
merge the two. The backward pass hands each part the merged output and log-sum-exp: with them a
kernel recomputes the true probabilities, so its gradients are exact and the parts only add up.
No mask of the whole row, no copy of a prompt's keys, and no work on what is not seen.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.ops.segments import Part, Piece, Segments, parts_of

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def cascade_on_cpu(
    query: Float[Tensor, "1 A T D"],
    key: Float[Tensor, "1 B T D"],
    value: Float[Tensor, "1 B T D"],
    segments: Segments,
    *,
    scale: float,
    window: int | None,
) -> Float[Tensor, "1 A T D"]:
    """Attention of a flat row with torch's flash kernels for CPUs.

    Args:
        query: of A heads.
        key: of B heads, a divisor of A.
        value: of the same B heads.
        segments: the row.
        scale: what products of queries and keys are multiplied by.
        window: how many tokens a token sees, itself included; None for all.
    """
    return _cascade(query, key, value, segments, scale, window)


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> Tensor:
        parts = parts_of(segments, window)

        def attend(part: Part) -> tuple[Tensor, Tensor]:
            rows, columns = _slice(part.queries), _slice(part.keys)
            out, lse = _forward(
                query[:, :, rows],
                key[:, :, columns],
                value[:, :, columns],
                0.0,
                part.is_causal and part.window is None,
                attn_mask=_mask(part, query),
                scale=scale,
            )
            return out, lse

        own = [attend(part) for part in parts.own]
        # A token's heads lie next to each other, which is how the layer behind it reads them.
        out = torch.cat([each[0].transpose(1, 2) for each in own], dim=1).transpose(1, 2)
        lse = torch.cat([each[1] for each in own], dim=2)
        for part in parts.prefix:
            rows = _slice(part.queries)
            merge(out[:, :, rows], lse[:, :, rows], *attend(part))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors

        def gradients(part: Part) -> tuple[Tensor, Tensor, Tensor]:
            rows, columns = _slice(part.queries), _slice(part.keys)
            found: tuple[Tensor, Tensor, Tensor] = _backward(
                grad_out[:, :, rows],
                query[:, :, rows],
                key[:, :, columns],
                value[:, :, columns],
                out[:, :, rows],
                lse[:, :, rows],
                0.0,
                part.is_causal and part.window is None,
                attn_mask=_mask(part, query),
                scale=ctx.scale,
            )
            return found

        own = zip(*(gradients(part) for part in ctx.parts.own), strict=True)
        grad_query, grad_key, grad_value = (torch.cat(each, dim=2) for each in own)
        for part in ctx.parts.prefix:
            rows, columns = _slice(part.queries), _slice(part.keys)
            of_query, of_key, of_value = gradients(part)
            grad_query[:, :, rows] += of_query
            grad_key[:, :, columns] += of_key
            grad_value[:, :, columns] += of_value
        return grad_query, grad_key, grad_value, None, None, None


_cascade: Callable[..., Tensor] = _Cascade.apply


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Merge another part into rows of an output and its log-sum-exp, in place.

    Args:
        out: outputs [..., D].
        lse: their log-sum-exps [...].
        other_out: outputs of the same rows over other keys.
        other_lse: their log-sum-exps.
    """
    # exp(other_lse) / (exp(lse) + exp(other_lse))
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    out.copy_(torch.lerp(out.to(share.dtype), other_out.to(share.dtype), share))
    lse.copy_(torch.logaddexp(lse, other_lse))


def _mask(part: Part, like: Tensor) -> Float[Tensor, "n m"] | None:
    """What is added to products of queries and keys: 0 where they see each other, else -inf."""
    if part.window is None:
        return None
    positions = torch.arange(part.queries.length, device=like.device) + part.offset
    distance = positions[:, None] - torch.arange(part.keys.length, device=like.device)
    is_seen = distance < part.window
    if part.is_causal:
        is_seen &= distance >= 0
    return torch.zeros_like(is_seen, dtype=like.dtype).masked_fill(~is_seen, -torch.inf)


def _slice(piece: Piece) -> slice:
    return slice(piece.start, piece.stop)
