"""Attention over a row of shared prompts in plain tensor operations, one response at a time.

For what the flash kernels lack: soft-capped scores, sinks, values of another size than keys, other
devices and dtypes. Each response's scores are recomputed in the backward pass instead of kept.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from prefopt.ops.segments import Piece, Segments


def plain_attention(
    query: Float[Tensor, "1 A T D"],
    key: Float[Tensor, "1 B T D"],
    value: Float[Tensor, "1 B T E"],
    segments: Segments,
    *,
    scale: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Float[Tensor, " A"] | None = None,
) -> Float[Tensor, "1 A T E"]:
    """Attention of a flat row.

    Args:
        query: of A heads.
        key: of B heads, a divisor of A.
        value: of the same B heads.
        segments: the row.
        scale: what products of queries and keys are multiplied by.
        window: how many tokens a token sees, itself included; None for all.
        softcap: scores become softcap * tanh(score / softcap); None leaves them.
        sinks: a score per head that takes part in the softmax and has no value.
    """

    def attend(prompt: Piece, own: Piece) -> Tensor:
        """Some tokens over a prompt, empty or not, and over themselves."""

        def keys_of(tensor: Tensor) -> Tensor:
            pieces = [tensor[:, :, piece.start : piece.stop] for piece in (prompt, own)]
            return torch.cat(pieces, dim=2)

        is_seen = _is_seen(prompt.length, own.length, window, query.device)
        tensors = query[:, :, own.start : own.stop], keys_of(key), keys_of(value)
        if softcap is None and sinks is None:
            return scaled_dot_product_attention(
                *tensors, attn_mask=is_seen, scale=scale, enable_gqa=True
            )
        out: Tensor = checkpoint(
            _softmax_attention, *tensors, is_seen, scale, softcap, sinks, use_reentrant=False
        )
        return out

    return torch.cat([attend(prompt, own) for prompt, own in segments.pieces()], dim=2)


def _softmax_attention(
    query: Float[Tensor, "1 A n D"],
    key: Float[Tensor, "1 B m D"],
    value: Float[Tensor, "1 B m E"],
    is_seen: Bool[Tensor, "n m"],
    scale: float,
    softcap: float | None,
    sinks: Float[Tensor, " A"] | None,
) -> Float[Tensor, "1 A n E"]:
    num_copies = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(num_copies, dim=1) for each in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~is_seen, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=wide).to(value.dtype)
    return weights[..., : value.shape[2]] @ value


def _is_seen(
    num_before: int, num_own: int, window: int | None, device: torch.device
) -> Bool[Tensor, "n m"]:
    """Which keys, those before first, each own token sees."""
    positions = torch.arange(num_before + num_own, device=device)
    distance = positions[num_before:, None] - positions
    is_seen = distance >= 0
    return is_seen if window is None else is_seen & (distance < window)
