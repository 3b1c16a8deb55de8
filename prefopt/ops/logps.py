"""Log-probs of tokens, without keeping the logits of more than one tile."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits of one tile in float32. Large enough to fill a device, small beside a model's activations.
_TILE_BYTES = 2**27


def target_logps(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Log softmax(logits) at the targets, in float32 or, for float64 logits, in float64."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    return chosen - logits.logsumexp(dim=1)


def tokens_per_tile(vocabulary: int) -> int:
    """How many tokens to project at once so that a tile's logits stay near 128 MiB; at least 1."""
    return max(1, _TILE_BYTES // (4 * vocabulary))


def tiled_target_logps(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    project: Callable[[Tensor], Tensor],
    num_tokens_per_tile: int,
) -> Float[Tensor, " N"]:
    """Log-probs of the targets, projecting a tile of hidden states at a time.

    Logits are recomputed tile by tile in the backward pass, so memory does not grow with N * V.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        targets: token ids.
        project: hidden states [n H] to logits [n V], without randomness.
        num_tokens_per_tile: n, at least 1.
    """

    def tile_logps(tile: Tensor, tile_targets: Tensor) -> Tensor:
        return target_logps(project(tile), tile_targets)

    tiles = zip(hidden.split(num_tokens_per_tile), targets.split(num_tokens_per_tile), strict=True)
    return torch.cat(
        [checkpoint(tile_logps, *t, use_reentrant=False, preserve_rng_state=False) for t in tiles]
    )
