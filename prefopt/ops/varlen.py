"""Attention over a row of shared prompts with torch's flash kernels for CUDA.

Full attention takes two calls of variable length for the whole row, merged as in
`prefopt.ops.cascade`. A sliding window that binds gathers every response behind its prompt, since
these kernels have no window between sequences of which one starts where the other ends.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.ops.cascade import merge
from prefopt.ops.segments import Piece, Segments

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward


def varlen_on_cuda(
    query: Float[Tensor, "1 A T D"],
    key: Float[Tensor, "1 B T D"],
    value: Float[Tensor, "1 B T D"],
    segments: Segments,
    *,
    scale: float,
    window: int | None,
) -> Float[Tensor, "1 A T D"]:
    """Attention of a flat row; arguments as of `cascade_on_cpu`, in bfloat16 or float16."""
    # The kernels want [tokens, heads, size].
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    if window is not None and segments.longest > window:
        out = _gathered(query, key, value, segments, scale=scale, window=window)
    else:
        out = _cascade(query, key, value, segments, scale)
    return out.transpose(0, 1).unsqueeze(0)


class _Call:
    """Sequences of queries over sequences of keys, as one call of the kernels sees them."""

    def __init__(
        self, queries: Iterable[int], keys: Iterable[int], device: torch.device, *, is_causal: bool
    ) -> None:
        """Takes the lengths of both, sequence by sequence."""
        queries, keys = list(queries), list(keys)
        self.ends = [_ends(queries, device), _ends(keys, device)]
        self.longest = [max(queries), max(keys)]
        self.is_causal = is_causal

    def forward(self, *tensors: Tensor, scale: float) -> tuple[Tensor, ...]:
        """Output [tokens, heads, size], log-sum-exps [heads, tokens] and what randomness needs."""
        found: tuple[Tensor, ...] = _forward(
            *tensors, *self.ends, *self.longest, 0.0, self.is_causal, False, scale=scale
        )
        return found[:4]

    def backward(self, grad_out: Tensor, *tensors: Tensor, random: Any, scale: float) -> Any:
        """Gradients of queries, keys and values, given the merged output and log-sum-exps."""
        return _backward(
            grad_out, *tensors, *self.ends, *self.longest, 0.0, self.is_causal, *random, scale=scale
        )


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float
    ) -> Tensor:
        own, prefix = _calls(segments, query.device)
        out, lse, *random = own.forward(query, key, value, scale=scale)
        ctx.random = [random]
        if prefix is not None:
            num = segments.num_prompt_tokens
            of_prefix = prefix.forward(query[num:], key[:num], value[:num], scale=scale)
            # Log-sum-exps are [heads, tokens], outputs [tokens, heads, size].
            merge(out[num:], lse[:, num:].T, of_prefix[0], of_prefix[1].T)
            ctx.random.append(of_prefix[2:])
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        own, prefix = _calls(ctx.segments, query.device)
        grad_out = grad_out.contiguous()
        grad_query, grad_key, grad_value = own.backward(
            grad_out, query, key, value, out, lse, random=ctx.random[0], scale=ctx.scale
        )
        if prefix is not None:
            num = ctx.segments.num_prompt_tokens
            of_query, of_key, of_value = prefix.backward(
                grad_out[num:],
                query[num:],
                key[:num],
                value[:num],
                out[num:],
                lse[:, num:].contiguous(),
                random=ctx.random[1],
                scale=ctx.scale,
            )
            grad_query[num:] += of_query
            grad_key[:num] += of_key
            grad_value[:num] += of_value
        return grad_query, grad_key, grad_value, None, None


_cascade: Callable[..., Tensor] = _Cascade.apply


@lru_cache(maxsize=8)
def _calls(segments: Segments, device: torch.device) -> tuple[_Call, _Call | None]:
    """The call within segments, and the one from responses to prompts if there are any."""
    lengths = [own.length for _, own in segments.pieces()]
    own = _Call(lengths, lengths, device, is_causal=True)
    totals = list(map(sum, segments.response_lengths))
    if not any(totals):
        return own, None
    assert all(totals), "a prompt without responses beside prompts with some"
    return own, _Call(totals, segments.prompt_lengths, device, is_causal=False)


def _gathered(
    query: Float[Tensor, "T A D"],
    key: Float[Tensor, "T B D"],
    value: Float[Tensor, "T B D"],
    segments: Segments,
    *,
    scale: float,
    window: int,
) -> Float[Tensor, "T A D"]:
    """Windowed attention of every prompt, and of every response over its prompt and itself."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest, positions = _gather_plan(segments, window, query.device)
    out = varlen_attn(
        query,
        key.index_select(0, positions),
        value.index_select(0, positions),
        *ends,
        *longest,
        scale=scale,
        # Bottom-right aligned: the last query sees the last key.
        window_size=(window - 1, 0),
        enable_gqa=True,
    )
    assert isinstance(out, Tensor)
    return out


@lru_cache(maxsize=8)
def _gather_plan(
    segments: Segments, window: int, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[int, int], Int[Tensor, " M"]]:
    """Ends of queries and keys per sequence, the longest of each, and which keys to gather."""
    rows = list(segments.pieces())
    # Of a prompt, no more than the window reaches.
    tails = [Piece(max(p.start, p.stop - window + 1), p.stop) for p, _ in rows]
    queries = [own.length for _, own in rows]
    keys = [tail.length + own.length for tail, (_, own) in zip(tails, rows, strict=True)]
    positions = torch.cat(
        [
            torch.arange(piece.start, piece.stop)
            for tail, (_, own) in zip(tails, rows, strict=True)
            for piece in (tail, own)
        ]
    )
    ends = (_ends(queries, device), _ends(keys, device))
    return ends, (max(queries), max(keys)), positions.to(device)


def _ends(lengths: Iterable[int], device: torch.device) -> Int[Tensor, " _"]:
    ends = list(accumulate(lengths, initial=0))
    return torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)
