"""From what layers read and the derivatives by what they write to inner products of gradients."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefopt.diagnostics.places import Place, Plan
from prefopt.diagnostics.products import (
    HeadSlopes,
    gram_of_rows,
    linear_gram,
    of_each,
    sums_of_each,
    wide,
)
from prefopt.diagnostics.taps import Call, Taps
from prefopt.diagnostics.tokens import Tokens
from prefopt.models.head import base_of
from prefopt.models.logits import logit_transform


class Listener:
    """Adds up one group's products, parameter by parameter, while a backward pass runs."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        plan: Plan,
        tokens: Tokens,
        ids: Int[Tensor, " U"],
        weights: Float[Tensor, " N"] | None,
    ) -> None:
        """Takes who is heard, where tokens lie, which ids there are, and the tokens' weights."""
        base = base_of(model)
        self._transform = logit_transform(base)
        self._head, self._embedding = base.get_output_embeddings(), base.get_input_embeddings()
        self._plan, self._tokens, self._ids, self._weights = plan, tokens, ids, weights
        self._taps = Taps()
        self._uses: Counter[str] = Counter()
        self._is_backward = False
        self._parts: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._tied_rows: dict[str, Tensor] = {}

    def listening(self) -> AbstractContextManager[None]:
        """Around a forward pass, and `backward` after it."""
        return self._taps.behind({module: self._beginning(module) for module in self._plan})

    def backward(self, total: Float[Tensor, ""]) -> dict[str, Float[Tensor, "K K"]]:
        """The products for each parameter, by a backward pass from a sum of log-probs."""
        self._is_backward = True
        self._taps.backward(total)
        for name, gradients in self._gradients.items():
            self._add(name, gram_of_rows(gradients))
        return self._parts

    def _beginning(self, module: nn.Module) -> Callable[[], Callable[[Call], None]]:
        places = self._plan[module]
        if module is self._head:
            hear = self._hear_head
        elif isinstance(module, nn.Embedding) and _are_own(places, module):
            hear = self._hear_embedding
        elif type(module) in (nn.Linear, Conv1D) and _are_own(places, module):
            hear = self._hear_linear
        else:
            hear = self._hear_any

        def begin() -> Callable[[Call], None]:
            # What is computed again in the backward pass is no further use.
            if not self._is_backward:
                self._uses.update(place.name for place in places)
            return lambda call: hear(places, call)

        return begin

    def _add(self, name: str, part: Float[Tensor, "K K"]) -> None:
        self._parts[name] = self._parts[name] + part if name in self._parts else part

    def _add_gradients(self, name: str, gradients: Float[Tensor, "K n"]) -> None:
        """Of one use: those of several add up before any product is taken."""
        if self._uses[name] == 1:
            self._add(name, gram_of_rows(gradients))
        elif name in self._gradients:
            self._gradients[name] = self._gradients[name] + gradients
        else:
            self._gradients[name] = gradients

    def _hear_linear(self, places: list[Place], call: Call) -> None:
        assert call.slopes[0] is not None
        read, slopes = self._tokens.flat(call.args[0]), self._tokens.flat(call.slopes[0])
        assert read is not None
        assert slopes is not None
        spans = self._tokens.spans
        for place in places:
            if place.attribute != "weight":
                self._add_gradients(place.name, sums_of_each(slopes, spans))
            elif self._uses[place.name] == 1:
                self._add(place.name, linear_gram(read, slopes, spans))
            else:
                self._add_gradients(place.name, of_each(read, slopes, spans).flatten(1))

    def _hear_head(self, places: list[Place], call: Call) -> None:
        head = call.module
        assert isinstance(head, nn.Linear)
        found = HeadSlopes(
            call.args[0],
            call.kwargs["targets"],
            head.weight.detach(),
            None if head.bias is None else head.bias.detach(),
            self._weights,
            scale=self._transform.scale,
            softcap=self._transform.softcap,
        )
        spans = self._tokens.scored_spans
        of_weight, of_bias = found.gram(spans)
        for place in places:
            self._add(place.name, of_weight if place.attribute == "weight" else of_bias)
            if self._uses[place.name] > 1:
                self._tied_rows[place.name] = found.rows_of_each(self._ids, spans).flatten(1)

    def _hear_embedding(self, places: list[Place], call: Call) -> None:
        """Gradients of the rows that were read, as autograd finds them; others are 0."""
        (place,) = places
        with _sparse(call.module), self._taps.deaf():
            outputs = call.again()
            found = [self._of_span(span, outputs, places)[0] for span in self._tokens.spans]
        ids = self._ids
        if place.owner is not self._embedding:
            is_only_use = self._uses[place.name] == 1
            ids = torch.arange(found[0].shape[0], device=ids.device)
            ids = found[0]._indices()[0].unique() if is_only_use else ids
        each = []
        for gradient in found:
            rows = gradient._values().new_zeros(len(ids), gradient.shape[1])
            at = torch.searchsorted(ids, gradient._indices()[0])
            each.append(wide(rows.index_add(0, at, gradient._values())))
        gradients = torch.stack(each).flatten(1)
        if place.name in self._tied_rows:
            cross = gradients @ self._tied_rows[place.name].T
            self._add(place.name, (cross + cross.T).double())
        self._add_gradients(place.name, gradients)

    def _hear_any(self, places: list[Place], call: Call) -> None:
        """Gradients by computing the layer once more, for one response after the other."""
        # Deaf to the end: layers within may be computed yet again in these backward passes.
        with self._taps.deaf():
            outputs = call.again()
            each = [self._of_span(span, outputs, places) for span in self._tokens.spans]
        for place, gradients in zip(places, zip(*each, strict=True), strict=True):
            assert place.name not in self._tied_rows
            self._add_gradients(place.name, wide(torch.stack(gradients).flatten(1)))

    def _of_span(
        self, span: slice, outputs: list[tuple[Tensor, Tensor]], places: list[Place]
    ) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            [output for output, _ in outputs],
            [place.tensor for place in places],
            [self._tokens.only(span, slope) for _, slope in outputs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


@contextmanager
def _sparse(module: nn.Module) -> Iterator[None]:
    """Let an embedding give the gradient of the rows that it reads alone."""
    assert isinstance(module, nn.Embedding)
    was_sparse, module.sparse = module.sparse, True
    try:
        yield
    finally:
        module.sparse = was_sparse


def _are_own(places: list[Place], module: nn.Module) -> bool:
    """Whether a layer of a known kind is asked for its own parameters only, and computes them."""
    is_plain = "forward" not in vars(module)
    return is_plain and all(place.owner is module for place in places)
