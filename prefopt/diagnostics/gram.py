"""The Gram matrix of log-prob gradients, exactly, in one backward pass.

G[i, j] = <grad log pi(y_i|x), grad log pi(y_j|x)> over all trainable parameters. It says by how
much a step along the gradient of response j moves the log-prob of response i, which is what
gradient entanglement (arXiv 2410.13828) is about.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.data.collate import repeat_responses
from prefopt.diagnostics.listener import Listener
from prefopt.diagnostics.places import Plan, who_answers
from prefopt.diagnostics.tokens import Tokens
from prefopt.models.head import base_of, layout_of
from prefopt.models.layout import LayoutName, lay_out, score_tokens
from prefopt.models.load import dropout_rates
from prefopt.types import GroupBatch


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but layers that are computed again for the backward pass still are.

    Compiled layers run as they are written.
    """
    modes = {module: module.training for module in model.modules()}
    rates: dict[nn.Module, dict[str, float]] = {}
    model.eval()
    for module, was_training in modes.items():
        if getattr(module, "gradient_checkpointing", False) and was_training:
            module.training = True
            # Some layers drop values themselves.
            rates[module] = dropout_rates(module)
            for name in rates[module]:
                setattr(module, name, 0.0)
    try:
        # A compiled layer would compute without listening to what it holds.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
        for module, own in rates.items():
            for name, rate in own.items():
                setattr(module, name, rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gram:
    """Inner products between the gradients of the summed log-probs of K responses."""

    of_parameter: dict[str, Float[Tensor, "K K"]]
    """In float64, by the name of the parameter; their sum is the whole."""
    missing: tuple[str, ...]
    """Trainable parameters that are not in it, since no layer tells whose tokens they act on."""
    token_logps: Float[Tensor, " N"]
    """Log-probs of the scored tokens, from the same forward pass, without gradient."""

    @property
    def total(self) -> Float[Tensor, "K K"]:
        """Over all parameters but those that are missing."""
        return torch.stack(list(self.of_parameter.values())).sum(dim=0)


class GramMeter:
    """Measures Grams of one model; what its layers are is found out at the first one."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        """Takes a policy with a log-prob head, which may be sharded but has no other wrapper.

        Raises:
            ValueError: if nothing of it is trainable.
        """
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                "no parameter of the model is trainable, so there is no gradient to compare; "
                "call requires_grad_() on it."
            )
        self.model = model
        # A prompt that is shared has one derivative for all its responses.
        self.layout: LayoutName = "padded" if layout_of(model)[0] == "padded" else "packed"
        self._head = base_of(model).get_output_embeddings()
        self._plan: tuple[Plan, tuple[str, ...]] | None = None

    def measure(self, batch: GroupBatch, weights: Float[Tensor, " N"] | None = None) -> Gram:
        """Gradient inner products of all responses of a micro-batch, in their order.

        Those of several groups tell what a step on one does to the others.

        Costs a forward pass, the derivatives by activations, and the products; the first one costs
        another forward pass. Gradients of parameters are neither read nor changed, and dropout is
        off meanwhile. Gradient checkpointing, if it is on, must not be reentrant.

        Args:
            batch: one group or several, on the model's device.
            weights: of the scored tokens, each response being their weighted sum of log-probs; by
                default 1.
        """
        if self._plan is None:
            # In a single row a layer that serves all rows at once looks like one that serves each.
            is_alone = len(batch.layout.response_lengths) == 1
            self._plan = self._found_plan(repeat_responses(batch) if is_alone else batch)
        plan, missing = self._plan
        tokens, ids = self._where(batch)
        listener = Listener(self.model, plan, tokens, ids.unique(), weights)
        with without_dropout(self.model), torch.enable_grad(), listener.listening():
            logps = self._logps(batch)
            parts = listener.backward((logps if weights is None else logps * weights).sum())
        return Gram(of_parameter=parts, missing=missing, token_logps=logps.detach())

    def _where(self, batch: GroupBatch) -> tuple[Tokens, Int[Tensor, "R L"]]:
        """Where tokens lie, and which ones."""
        ids: Tensor = lay_out(batch, self.layout).arguments()["input_ids"]
        return Tokens.of(batch, self.layout, tuple(ids.shape)), ids

    def _found_plan(self, batch: GroupBatch) -> tuple[Plan, tuple[str, ...]]:
        """Who answers for what, by a forward pass."""
        tokens, head = self._where(batch)[0], self._head
        return who_answers(
            self.model,
            lambda module, output: module is head or tokens.are_in(output),
            lambda: self.token_logps(batch),
        )

    def token_logps(self, batch: GroupBatch) -> Float[Tensor, " N"]:
        """Log-probs of the scored tokens alone, computed as `measure` does."""
        with without_dropout(self.model), torch.no_grad():
            return self._logps(batch)

    def _logps(self, batch: GroupBatch) -> Float[Tensor, " N"]:
        logps: Tensor = score_tokens(self.model, batch, layout=self.layout)
        return logps
