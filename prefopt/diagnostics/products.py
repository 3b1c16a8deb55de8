"""Inner products between the gradients of K responses, layer by layer, from what a layer saw.

Throughout, `a` is what a layer read and `b` the derivative of the sum of all log-probs by what it
wrote, one row per token. A token belongs to one response, so the rows of response i give that one's
gradient. Products are taken in float32 or wider and returned in float64.

Source: the inner product of two sums of outer products, as in Goodfellow, "Efficient per-example
gradient computations" (2015), and Wang et al., "Data Shapley in one training run" (2024).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TILE_ELEMENTS = 1 << 24
_MOST_ELEMENTS = 1 << 29
"""Of whole gradients that may be there at once: 2 GiB in float32."""

Spans = Sequence[slice]
"""Which rows belong to each response."""


def wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def gram_of_rows(rows: Float[Tensor, "K n"]) -> Float[Tensor, "K K"]:
    """Inner products of whole gradients."""
    rows = wide(rows)
    return (rows @ rows.T).double()


def of_each(
    a: Float[Tensor, "T I"], b: Float[Tensor, "T O"], spans: Spans
) -> Float[Tensor, "K O I"]:
    """The gradient of a linear layer's weight for each response."""
    a, b = wide(a), wide(b)
    return torch.stack([b[span].T @ a[span] for span in spans])


def linear_gram(
    a: Float[Tensor, "T I"], b: Float[Tensor, "T O"], spans: Spans
) -> Float[Tensor, "K K"]:
    """Of a linear layer's weight, by the cheaper of two ways, by the number of multiplications.

    Products of tokens where they are fewer or whole gradients would not fit, else the latter.
    """
    if not _is_ghost_cheaper([span.stop - span.start for span in spans], a.shape[1], b.shape[1]):
        return gram_of_rows(of_each(a, b, spans).flatten(1))
    a, b = wide(a), wide(b)

    def product(i: int, j: int) -> Tensor:
        mine, theirs = spans[i], spans[j]
        return ((a[mine] @ a[theirs].T) * (b[mine] @ b[theirs].T)).sum()

    return _symmetric(product, len(spans), a.device)


def sums_of_each(rows: Float[Tensor, "T n"], spans: Spans) -> Float[Tensor, "K n"]:
    """Sums over each response's tokens: the gradient of a bias."""
    return torch.stack([wide(rows)[span].sum(dim=0) for span in spans])


class HeadSlopes:
    """Derivatives by the logits of N tokens, a piece of the vocabulary at a time.

    Of their log-probs, each times its weight if there are weights.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "N H"],
        targets: Int[Tensor, " N"],
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"] | None,
        weights: Float[Tensor, " N"] | None,
        *,
        scale: float,
        softcap: float | None,
    ) -> None:
        """Takes the products with the whole vocabulary once, for the normaliser of each token."""
        self.hidden, self.targets = wide(hidden), targets
        self._weight, self._bias, self._weights = weight, bias, weights
        self._scale, self._softcap = scale, softcap
        self.width = max(1, _TILE_ELEMENTS // max(len(targets), hidden.shape[1]))
        parts = [
            torch.logsumexp(self._logits(each), dim=1)
            for each in torch.arange(weight.shape[0], device=weight.device).split(self.width)
        ]
        self._normaliser = torch.logsumexp(torch.stack(parts), dim=0)

    def at(self, tokens: Int[Tensor, " v"]) -> Float[Tensor, "N v"]:
        """For some tokens of the vocabulary, by what the projection wrote for them."""
        logits = self._logits(tokens)
        slopes = -torch.exp(logits - self._normaliser[:, None])
        slopes = slopes + (self.targets[:, None] == tokens).to(slopes.dtype)
        if self._softcap is not None:
            slopes = slopes * (1.0 - (logits / self._softcap).square())
        if self._weights is not None:
            slopes = slopes * self._weights[:, None]
        return slopes * self._scale

    def pieces(self) -> Sequence[Int[Tensor, " v"]]:
        """The vocabulary in order."""
        size = self._weight.shape[0]
        return list(torch.arange(size, device=self._weight.device).split(self.width))

    def gram(self, spans: Spans) -> tuple[Float[Tensor, "K K"], Float[Tensor, "K K"]]:
        """Of the projection's weight, by the cheaper of two ways, and of its bias."""
        count, width = self.hidden.shape
        num = len(spans)
        of_weight = torch.zeros(num, num, dtype=torch.float64, device=self.hidden.device)
        of_bias = of_weight.clone()
        is_ghost_cheaper = count**2 < (count + num**2) * width
        products = self.hidden.new_zeros(count, count) if is_ghost_cheaper else None
        for tokens in self.pieces():
            slopes = self.at(tokens)
            of_bias += gram_of_rows(sums_of_each(slopes, spans))
            if products is not None:
                products += slopes @ slopes.T
            else:
                of_weight += gram_of_rows(of_each(self.hidden, slopes, spans).flatten(1))
        if products is not None:
            products *= self.hidden @ self.hidden.T
            of_weight = _symmetric(
                lambda i, j: products[spans[i], spans[j]].sum(), num, products.device
            )
        return of_weight, of_bias

    def rows_of_each(self, tokens: Int[Tensor, " U"], spans: Spans) -> Float[Tensor, "K U H"]:
        """Some rows of the weight's gradient for each response."""
        slopes = self.at(tokens)
        return torch.stack([slopes[span].T @ self.hidden[span] for span in spans])

    def _logits(self, tokens: Int[Tensor, " v"]) -> Float[Tensor, "N v"]:
        bias = None if self._bias is None else wide(self._bias[tokens])
        logits = torch.nn.functional.linear(self.hidden, wide(self._weight[tokens]), bias)
        logits = logits * self._scale
        if self._softcap is None:
            return logits
        return self._softcap * torch.tanh(logits / self._softcap)


def _is_ghost_cheaper(lengths: Sequence[int], width_in: int, width_out: int) -> bool:
    total = sum(lengths)
    num_pairs = (total**2 + sum(length**2 for length in lengths)) / 2
    whole = width_in * width_out
    num_entries = len(lengths) * (len(lengths) + 1) / 2
    if len(lengths) * whole > _MOST_ELEMENTS:
        return True
    return num_pairs * (width_in + width_out) < total * whole + num_entries * whole


def _symmetric(
    product: Callable[[int, int], Tensor], size: int, device: torch.device
) -> Float[Tensor, "K K"]:
    gram = torch.zeros(size, size, dtype=torch.float64, device=device)
    for i in range(size):
        for j in range(i, size):
            gram[i, j] = gram[j, i] = product(i, j).double()
    return gram
