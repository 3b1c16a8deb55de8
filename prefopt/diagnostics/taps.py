"""Listening to a model's layers: what each one read, and the derivative by what it wrote.

A tap is an identity behind a layer. Autograd keeps for it what the layer read, so that recomputed
layers bring it anew, and hands it the derivative in the backward pass. No parameter takes part in
that pass: nothing is added to gradients, and no wrapper reduces any.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from prefopt.diagnostics.tokens import floats_of, is_float


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a layer, told in the backward pass."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slopes: list[Tensor | None]
    """The derivative by each float tensor that the layer returned; None where there is none."""
    precision: tuple[str, bool, torch.dtype]
    """Device, whether autocast was on, and its dtype."""

    def again(self) -> list[tuple[Tensor, Tensor]]:
        """What the layer returns, computed once more, each with the derivative by it.

        Whoever asks keeps taps deaf, and until all gradients are taken.
        """
        device, is_on, dtype = self.precision
        with (
            torch.enable_grad(),
            torch.autocast(device, enabled=is_on, dtype=dtype),
        ):
            written = floats_of(self.module.forward(*self.args, **self.kwargs))
        return [
            (output, slope)
            for output, slope in zip(written, self.slopes, strict=True)
            if slope is not None and output.requires_grad
        ]


class Taps:
    """Taps behind some layers, and the pass that makes them heard."""

    def __init__(self) -> None:
        self._is_listening = False
        self._anchor: Tensor | None = None

    @contextmanager
    def behind(
        self, modules: Mapping[nn.Module, Callable[[], Callable[[Call], None]]]
    ) -> Iterator[None]:
        """Listen to every call of these layers.

        Args:
            modules: for each, what is asked once per call for whom to tell of it.
        """
        hooks = [
            # Before the hooks of sharding wrappers, so that weights are there in the backward pass.
            module.register_forward_hook(self._hook(begin), prepend=True, with_kwargs=True)
            for module, begin in modules.items()
        ]
        self._anchor = torch.zeros((), requires_grad=True)
        self._is_listening = True
        try:
            yield
        finally:
            self._is_listening = False
            self._anchor = None
            for hook in hooks:
                hook.remove()

    def backward(self, total: Tensor) -> None:
        """Tell all that was heard since `behind` began."""
        assert self._anchor is not None
        # A tap gives the anchor no derivative, but the way to it leads through all of them.
        torch.autograd.grad(total, [self._anchor], allow_unused=True)

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Let layers run without a tap."""
        was_listening, self._is_listening = self._is_listening, False
        try:
            yield
        finally:
            self._is_listening = was_listening

    def _hook(self, begin: Callable[[], Callable[[Call], None]]) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            if not self._is_listening or not torch.is_grad_enabled():
                return output
            return self._tapped(begin(), module, args, kwargs, output)

        return hook

    def _tapped(
        self,
        hear: Callable[[Call], None],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        written, written_structure = tree_flatten(output)
        is_kept = [isinstance(leaf, Tensor) for leaf in leaves]
        kept = [leaf.detach() for leaf, keep in zip(leaves, is_kept, strict=True) if keep]
        others = [None if keep else leaf for leaf, keep in zip(leaves, is_kept, strict=True)]
        places = [i for i, each in enumerate(written) if is_float(each)]
        device = written[places[0]].device.type
        precision = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

        def told(saved: Sequence[Tensor], slopes: list[Tensor | None]) -> None:
            tensors = iter(saved)
            read = [
                next(tensors) if keep else other
                for keep, other in zip(is_kept, others, strict=True)
            ]
            args, kwargs = tree_unflatten(read, structure)
            hear(
                Call(
                    module=module,
                    args=args,
                    kwargs=kwargs,
                    slopes=slopes,
                    precision=precision,
                )
            )

        tapped = _tap(self._anchor, told, len(places), *(written[i] for i in places), *kept)
        for i, each in zip(places, tapped, strict=True):
            written[i] = each
        return tree_unflatten(written, written_structure)


class _Tap(torch.autograd.Function):
    """The identity on some tensors, which tells their derivatives in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        told: Callable[[Sequence[Tensor], list[Tensor | None]], None],
        num_written: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.told = told
        ctx.num_kept = len(tensors) - num_written
        ctx.save_for_backward(*tensors[num_written:])
        # No view: some models add to what a layer returned in place, as they may without a tap.
        return tuple(tensor.data for tensor in tensors[:num_written])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Any, ...]:
        ctx.told(ctx.saved_tensors, list(slopes))
        return None, None, None, *slopes, *[None] * ctx.num_kept


_tap: Callable[..., tuple[Tensor, ...]] = _Tap.apply
