"""The output projection of one tile of tokens after another, in the same memory.

logits = c * tanh(s * (h W^T + b) / c) with a scale s and a soft-cap c, or s * (h W^T + b) without
one; logp = logits[target] - logsumexp(logits). Its derivative with respect to h W^T + b,

    s * (onehot(target) - softmax(logits)) * (1 - (logits / c)^2),

takes the place of the tile's logits. One more matrix product of it gives d logp / d h, and another
one the gradient of W.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitSettings:
    """What is done with a projection, beside multiplying by its weight."""

    scale: float
    softcap: float | None
    dtype: torch.dtype
    """In which matrix products are computed; log-probs are in float32 or wider."""
    num_tokens_per_tile: int

    @classmethod
    def of(
        cls, hidden: Tensor, *, scale: float, softcap: float | None, num_tokens_per_tile: int
    ) -> "LogitSettings":
        """Those of a call, in the dtype in which a linear layer would compute here."""
        device = hidden.device.type
        # Autocast leaves float64 alone.
        is_cast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
        return cls(
            scale=scale,
            softcap=softcap,
            dtype=torch.get_autocast_dtype(device) if is_cast else hidden.dtype,
            num_tokens_per_tile=num_tokens_per_tile,
        )

    @property
    def exact_dtype(self) -> torch.dtype:
        """Of log-probs and of sums over tokens."""
        return torch.promote_types(self.dtype, torch.float32)

    def tiles(self, start: int, stop: int) -> Iterator[slice]:
        """The tokens from start to stop in tiles, of which the first may be smaller.

        Whoever needs the last tile's logits once more finds as many as there can be.
        """
        size = self.num_tokens_per_tile
        first = start + (stop - start - 1) % size + 1
        for begin, end in pairwise([start, *range(first, stop + 1, size)]):
            yield slice(begin, end)


class TiledHead:
    """An output projection with memory for the logits of one tile, which every tile reuses.

    To be called where autograd does not record, such as in an autograd function, and without
    autocast.
    """

    def __init__(
        self,
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"] | None,
        settings: LogitSettings,
        num_tokens: int,
    ) -> None:
        self._settings = settings
        self._weight = weight.detach().to(settings.dtype)
        self._bias = None if bias is None else bias.detach().to(settings.dtype)
        shape = (min(num_tokens, settings.num_tokens_per_tile), weight.shape[0])
        self._projected = weight.new_empty(shape, dtype=settings.dtype)
        # One buffer is enough unless the projected values are needed again, or in another dtype.
        self._shares = settings.softcap is None and settings.exact_dtype == settings.dtype
        self._exact = (
            self._projected if self._shares else weight.new_empty(shape, dtype=settings.exact_dtype)
        )

    def logps(
        self, hidden: Float[Tensor, "n H"], targets: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Log-probs of the targets of a tile; leaves what `slopes` needs of it. One product."""
        logits = self._logits(hidden)
        chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        # The operations of torch.logsumexp, in place.
        highest = logits.amax(dim=1, keepdim=True)
        sums = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
        logits.div_(sums)
        return chosen - sums.log_().add_(highest).squeeze(1)

    def slopes(self, targets: Int[Tensor, " n"]) -> "Slopes":
        """Derivatives of the log-probs found last, for the targets that they were found of.

        They are valid until the next call of `logps`.
        """
        num_tokens = targets.shape[0]
        exact, projected = self._exact[:num_tokens], self._projected[:num_tokens]
        # -(onehot - softmax): the sign goes to where it costs nothing.
        exact.scatter_add_(1, targets.unsqueeze(1), exact.new_full((num_tokens, 1), -1.0))
        if self._settings.softcap is not None:
            exact.mul_(projected.square_().neg_().add_(1.0))
        rounded = exact if exact.dtype == projected.dtype else projected.copy_(exact)
        return Slopes(
            exact=exact, rounded=rounded, factor=-self._settings.scale, weight=self._weight
        )

    def _logits(self, hidden: Float[Tensor, "n H"]) -> Float[Tensor, "n V"]:
        """Logits of a tile; under a soft-cap, `_projected` keeps the hyperbolic tangents."""
        num_tokens = hidden.shape[0]
        projected, exact = self._projected[:num_tokens], self._exact[:num_tokens]
        hidden, transposed = hidden.to(self._settings.dtype), self._weight.t()
        if self._bias is None:
            torch.mm(hidden, transposed, out=projected)
        else:
            torch.addmm(self._bias, hidden, transposed, out=projected)
        if self._settings.scale != 1.0:
            projected.mul_(self._settings.scale)
        if self._settings.softcap is not None:
            projected.div_(self._settings.softcap).tanh_()
            return torch.mul(projected, self._settings.softcap, out=exact)
        return exact if self._shares else exact.copy_(projected)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slopes:
    """d logp / d (h W^T + b) of a tile, up to a factor."""

    exact: Float[Tensor, "n V"]
    rounded: Float[Tensor, "n V"]
    """The same in the dtype of matrix products."""
    factor: float
    weight: Float[Tensor, "V H"]

    def hidden_gradient(self) -> Float[Tensor, "n H"]:
        """The unit gradient d logp / d hidden of every token. One product."""
        return (self.rounded @ self.weight).mul_(self.factor)

    def add_weight_gradient(
        self,
        total: Float[Tensor, "V H"],
        hidden: Float[Tensor, "n H"],
        factors: Float[Tensor, " n"],
    ) -> None:
        """Add the gradient of sum(factors * logps) to that of other tiles. One product."""
        weighted = hidden * (self.factor * factors).unsqueeze(1)
        if self.rounded is not self.exact and total.is_cuda:
            # Sums over all tokens stay exact although the factors are rounded.
            weighted = weighted.to(self.rounded.dtype)
            torch.addmm(total, self.rounded.t(), weighted, out_dtype=total.dtype, out=total)
        else:
            total.addmm_(self.exact.t(), weighted.to(total.dtype))

    def add_bias_gradient(self, total: Float[Tensor, " V"], factors: Float[Tensor, " n"]) -> None:
        """Add the gradient of sum(factors * logps) to that of other tiles."""
        total.addmv_(self.exact.t(), self.factor * factors)


class HeadGradients:
    """Gradients of sum(factors * logps), gathered a tile at a time in float32 or wider."""

    def __init__(
        self,
        *inputs: Tensor | None,
        is_wanted: Sequence[bool],
        dtype: torch.dtype,
    ) -> None:
        """Zeros for those of hidden [N H], weight [V H] and bias [V] whose gradient is wanted."""
        self._dtypes = [None if each is None else each.dtype for each in inputs]
        self._totals = [
            torch.zeros_like(each, dtype=dtype) if each is not None and wanted else None
            for each, wanted in zip(inputs, is_wanted, strict=True)
        ]

    def add(
        self,
        part: slice,
        slopes: Slopes,
        hidden: Float[Tensor, "n H"],
        factors: Float[Tensor, " n"],
    ) -> None:
        """Add the tokens of one tile."""
        of_hidden, of_weight, of_bias = self._totals
        if of_hidden is not None:
            torch.mul(slopes.hidden_gradient(), factors.unsqueeze(1), out=of_hidden[part])
        if of_weight is not None:
            slopes.add_weight_gradient(of_weight, hidden, factors)
        if of_bias is not None:
            slopes.add_bias_gradient(of_bias, factors)

    def scale_(self, factor: Float[Tensor, ""]) -> None:
        """Multiply all of them, in place: that of the weight may be the largest tensor of all."""
        for total in self._totals:
            if total is not None:
                total.mul_(factor)

    def rounded(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden, weight and bias, in their dtypes; None where none is wanted."""
        of_hidden, of_weight, of_bias = (
            None if total is None else total.to(dtype)
            for total, dtype in zip(self._totals, self._dtypes, strict=True)
        )
        return of_hidden, of_weight, of_bias


def without_autocast(like: Tensor) -> torch.autocast:
    """Leaves dtypes as they are: under autocast, even products of float32 sums are rounded."""
    return torch.autocast(like.device.type, enabled=False)
