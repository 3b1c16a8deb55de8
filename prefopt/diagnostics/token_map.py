"""Which tokens of two responses carry the inner product of their gradients.

The gradient of a response's log-prob is the sum of those of its tokens, so the product of two
responses is the sum of a matrix: the products of single tokens' gradients. Each is measured with
the tokens before it as a response of its own, of which only the last one counts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.data.collate import collate
from prefopt.diagnostics.gram import GramMeter
from prefopt.types import TokenizedRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMap:
    """Of two responses of W and L tokens."""

    products: Float[Tensor, "W L"]
    """Inner products of the gradients of single tokens' log-probs; their sum is that of the two
    responses."""
    cosines: Float[Tensor, "W L"]


def token_map(
    meter: GramMeter, record: TokenizedRecord, first: int, second: int, device: torch.device
) -> TokenMap:
    """Products between all tokens of one response and all of another, by one Gram.

    Its cost grows with the square of the lengths: every token brings all that stands before it.

    Args:
        meter: of the policy.
        record: the group.
        first: number of one response.
        second: number of the other.
        device: of the policy.
    """
    responses = [record.response_ids[first], record.response_ids[second]]
    prefixes = [ids[:stop] for ids in responses for stop in range(1, len(ids) + 1)]
    batch = collate(
        [
            TokenizedRecord(
                id=record.id,
                prompt_ids=record.prompt_ids,
                response_ids=tuple(prefixes),
                scores=(0.0,) * len(prefixes),
            )
        ]
    ).to(device)
    ends = torch.tensor([len(ids) for ids in prefixes], device=device).cumsum(dim=0) - 1
    weights = torch.zeros(batch.targets.shape[0], device=device).index_fill(0, ends, 1.0)
    gram = meter.measure(batch, weights).total
    num = len(responses[0])
    sizes = gram.diagonal().sqrt()
    products = gram[:num, num:]
    return TokenMap(products=products, cosines=products / (sizes[:num, None] * sizes[num:]))
