"""Log-probs of logits, and statistics of the vocabulary that keep logits of one tile only."""

from collections.abc import Callable
from typing import Any

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


def tokens_per_tile(vocabulary: int, trained_width: int = 0) -> int:
    """How many tokens to project at once, at least 1.

    A tile's logits stay near 128 MiB in float32, or a quarter of what the gradient of a trained
    projection takes anyway: every tile reads and writes all of that.

    Args:
        vocabulary: V, outputs of the projection.
        trained_width: its inputs if it is trained, else 0.
    """
    return max(1, _TILE_BYTES // (4 * vocabulary), trained_width // 4)


def tiled_vocabulary_statistics(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    project: Callable[[Tensor], Tensor],
    num_tokens_per_tile: int,
    *,
    num_top: int,
    reference_hidden: Float[Tensor, "N J"] | None,
    project_reference: Callable[[Tensor], Tensor],
) -> tuple[
    Float[Tensor, " N"], Float[Tensor, "N k"], Int[Tensor, "N k"], Float[Tensor, " N"] | None
]:
    """What a loss may ask of the whole distribution at a position, a tile of positions at a time.

    It keeps the logits of one tile at most, of policy and reference, and recomputes them in the
    backward pass, so memory does not grow with N * V.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        targets: token ids.
        project: hidden states [n H] to logits [n V], without randomness.
        num_tokens_per_tile: n, at least 1.
        num_top: k, how many of the most likely tokens; 0 for none.
        reference_hidden: the reference's hidden states at the same positions; None for no KL.
        project_reference: those to the reference's logits [n V].

    Returns:
        log-probs of the targets; the k highest log-probs, highest first, and their tokens; and
        KL(reference || policy) over the vocabulary, in nats. All but the tokens have a gradient.
    """

    def of_tile(
        tile: Tensor, tile_targets: Tensor, reference_tile: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        logps = _all_logps(project(tile))
        top_logps, top_ids = logps.topk(num_top, dim=1)
        of_targets = logps.gather(1, tile_targets.unsqueeze(1)).squeeze(1)
        if reference_tile is None:
            return of_targets, top_logps, top_ids
        with torch.no_grad():
            reference = _all_logps(project_reference(reference_tile)).to(logps.dtype)
        divergence = (reference.exp() * (reference - logps)).sum(dim=1)
        return of_targets, top_logps, top_ids, divergence

    columns = [hidden, targets] + ([] if reference_hidden is None else [reference_hidden])
    tiles = _in_tiles(of_tile, num_tokens_per_tile, *columns)
    joined = [torch.cat(parts) for parts in zip(*tiles, strict=True)]
    logps, top_logps, top_ids = joined[:3]
    return logps, top_logps, top_ids, joined[3] if reference_hidden is not None else None


def _all_logps(logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """Log-probs of the whole vocabulary, equal to those of `target_logps` in all their bits."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits - logits.logsumexp(dim=1, keepdim=True)


def _in_tiles(
    function: Callable[..., Any], num_tokens_per_tile: int, *columns: Tensor
) -> list[Any]:
    """The function of each tile of rows, recomputed in the backward pass instead of kept."""
    tiles = zip(*(column.split(num_tokens_per_tile) for column in columns), strict=True)
    return [
        checkpoint(function, *tile, use_reentrant=False, preserve_rng_state=False) for tile in tiles
    ]
