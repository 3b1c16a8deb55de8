"""How a micro-batch lies in a model: one flat row, or padded rows."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prefopt.models.attention import placeholder_mask
from prefopt.ops.segments import Piece, Segments
from prefopt.types import GroupBatch

LayoutName = Literal["shared", "packed", "padded"]
"""One row in which a prompt's tokens stand once for all its responses, one row of whole sequences,
or a padded row per response, which is what every model can do."""


@runtime_checkable
class Rows(Protocol):
    """A micro-batch as a model reads it."""

    def arguments(self) -> dict[str, Any]:
        """Of the model's decoder."""

    def scored(self, hidden: Float[Tensor, "R L H"]) -> Float[Tensor, "N H"]:
        """The hidden states that predict the scored tokens, in the order of the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedRows:
    """Every response behind a copy of its prompt, padded on the right to L tokens."""

    input_ids: Int[Tensor, "R L"]
    attention_mask: Int[Tensor, "R L"]
    predictors: Int[Tensor, " N"]
    """Position in the flattened rows that predicts each scored token: the one before it."""

    def arguments(self) -> dict[str, Any]:
        """Of the model's decoder."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def scored(self, hidden: Float[Tensor, "R L H"]) -> Float[Tensor, "N H"]:
        """The hidden states that predict the scored tokens."""
        return hidden.flatten(0, 1).index_select(0, self.predictors)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatRow:
    """All tokens in one row, without padding."""

    input_ids: Int[Tensor, "1 T"]
    position_ids: Int[Tensor, "1 T"]
    segments: Segments
    predictors: tuple[tuple[Piece, Piece], ...]
    """Of each response in order: the token that predicts its first one, and those that predict
    the others."""

    def arguments(self) -> dict[str, Any]:
        """Of the model's decoder."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "segments": self.segments,
            "attention_mask": placeholder_mask(self.input_ids),
        }

    def scored(self, hidden: Float[Tensor, "1 T H"]) -> Float[Tensor, "N H"]:
        """The hidden states that predict the scored tokens; a prompt's last one K times.

        One split into neighbouring pieces, since gradients of pieces that are picked twice are then
        added in a fixed order.
        """
        wanted = [piece for pair in self.predictors for piece in pair if piece.length]
        cuts = sorted({0, hidden.shape[1], *(c for w in wanted for c in (w.start, w.stop))})
        sizes = [stop - start for start, stop in pairwise(cuts)]
        pieces = dict(zip(cuts, hidden[0].split(sizes), strict=False))
        return torch.cat([pieces[piece.start] for piece in wanted])


def lay_out(batch: GroupBatch, layout: LayoutName) -> Rows:
    """The micro-batch in a layout."""
    if layout == "padded":
        return to_padded_rows(batch)
    return to_shared_row(batch) if layout == "shared" else to_packed_row(batch)


def to_shared_row(batch: GroupBatch) -> FlatRow:
    """The row that the batch is already: prompts, then their responses."""
    segments = Segments.shared(batch.layout)
    predictors = []
    for prompt, responses in segments.groups():
        last = Piece(prompt.stop - 1, prompt.stop)
        predictors += [(last, Piece(each.start, each.stop - 1)) for each in responses]
    return FlatRow(
        input_ids=batch.input_ids.unsqueeze(0),
        position_ids=batch.position_ids.unsqueeze(0),
        segments=segments,
        predictors=tuple(predictors),
    )


def to_packed_row(batch: GroupBatch) -> FlatRow:
    """Whole sequences, prompt and response, one after the other."""
    segments = Segments.packed(batch.layout)
    source, predictors = [], []
    for (prompt, response), sequence in zip(_texts(batch), segments.prompts(), strict=True):
        source += [torch.arange(each.start, each.stop) for each in (prompt, response)]
        first = sequence.start + prompt.length
        predictors.append((Piece(first - 1, first), Piece(first, sequence.stop - 1)))
    positions = torch.cat(source).to(batch.input_ids.device, non_blocking=True)
    return FlatRow(
        input_ids=batch.input_ids[positions].unsqueeze(0),
        position_ids=batch.position_ids[positions].unsqueeze(0),
        segments=segments,
        predictors=tuple(predictors),
    )


def to_padded_rows(batch: GroupBatch) -> PaddedRows:
    """Rows whose scored tokens are those of the flat batch, in the same order."""
    texts = _texts(batch)
    width = max(prompt.length + response.length for prompt, response in texts)
    # -1 marks padding; whatever token stands there is masked.
    source = torch.full((len(texts), width), -1)
    predictors = []
    for row, (prompt, response) in enumerate(texts):
        end = prompt.length + response.length
        source[row, : prompt.length] = torch.arange(prompt.start, prompt.stop)
        source[row, prompt.length : end] = torch.arange(response.start, response.stop)
        predictors.append(torch.arange(response.length) + row * width + prompt.length - 1)
    source = source.to(batch.input_ids.device)
    return PaddedRows(
        input_ids=batch.input_ids[source.clamp(min=0)],
        attention_mask=(source >= 0).long(),
        predictors=torch.cat(predictors).to(source.device),
    )


def _texts(batch: GroupBatch) -> list[tuple[Piece, Piece]]:
    """Where each response of the batch lies, behind its prompt."""
    return list(Segments.shared(batch.layout).continuations())


def token_logps(model: nn.Module, batch: GroupBatch) -> Float[Tensor, " N"]:
    """Log-prob of every scored token under a model with a log-prob head, wrapped or not."""
    logps: Tensor = score_tokens(model, batch)
    return logps


def score_tokens(model: nn.Module, batch: GroupBatch, **asked: Any) -> Any:
    """What a model with a log-prob head, wrapped or not, says of the scored tokens.

    Args:
        model: the model.
        batch: the micro-batch.
        asked: further arguments of the head; see `prefopt.models.head`.
    """
    return model(batch=batch, **asked)
