"""What prompts and responses cost in floating-point operations, whoever trains on them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Tokens of some groups, each prompt once."""

    unique: float
    """Prompts and responses."""
    scored: float
    """Responses alone."""
    visible: float
    """Pairs of a token and one that it attends to, itself included."""

    @classmethod
    def of(cls, prompt: int, responses: Sequence[int]) -> "Tokens":
        """Those of one group with such lengths."""
        in_responses = sum(responses)
        inside = sum(n * (n + 1) // 2 for n in (prompt, *responses))
        numbers = prompt + in_responses, in_responses, inside + prompt * in_responses
        unique, scored, visible = map(float, numbers)
        return cls(unique=unique, scored=scored, visible=visible)

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            unique=self.unique + other.unique,
            scored=self.scored + other.scored,
            visible=self.visible + other.visible,
        )

    def times(self, factor: int) -> "Tokens":
        """So many times as many."""
        return Tokens(
            unique=factor * self.unique,
            scored=factor * self.scored,
            visible=factor * self.visible,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Sizes of a model's products. A product with n weights costs 2 n operations per token."""

    num_body_weights: int
    """Weights of matrix products but the embedding and the output projection."""
    num_head_weights: int
    """hidden * vocabulary."""
    attention_width: int
    """layers * heads * head size."""
    num_adapter_weights: int = 0
    """0: the weights themselves are trained."""

    def forward(self, tokens: Tokens) -> float:
        """Operations of a pass without gradient, such as the reference's."""
        return self._layers(tokens) + 2 * self.num_head_weights * tokens.scored

    def training(self, tokens: Tokens) -> float:
        """Operations of one forward and backward pass, without padding or recomputation.

        The backward pass has twice the products of the forward one; frozen weights need no
        gradient of their own, so with an adapter it has as many, and those of the adapter.
        """
        if not self.num_adapter_weights:
            return 3 * self.forward(tokens)
        attention = 4 * self.attention_width * tokens.visible
        adapter = 6 * self.num_adapter_weights * tokens.unique
        return 2 * (self.forward(tokens) - attention) + 3 * attention + adapter

    def recomputation(self, tokens: Tokens) -> float:
        """Operations that gradient checkpointing adds: the layers' forward pass once more."""
        return self._layers(tokens)

    def _layers(self, tokens: Tokens) -> float:
        products = 2 * self.num_body_weights * tokens.unique
        return products + 4 * self.attention_width * tokens.visible
