"""Where tokens lie in what layers read and write, each response by itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prefopt.diagnostics.products import Spans
from prefopt.models.layout import LayoutName
from prefopt.types import GroupBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Of groups whose responses each stand behind a prompt of their own."""

    shape: tuple[int, ...]
    """Rows and columns of the model's input."""
    spans: Spans
    """The tokens of each response and its prompt, with one axis for all tokens."""
    scored_spans: Spans
    """The scored tokens of each response, among all scored ones."""

    @staticmethod
    def of(batch: GroupBatch, layout: LayoutName, shape: tuple[int, ...]) -> "Tokens":
        """Of a batch as it lies in the model."""
        prompts, num_slots = batch.layout.prompt_lengths, batch.layout.num_slots
        scored = batch.layout.response_lengths
        lengths = [
            prompts[slot // num_slots] + length
            for slot, length in zip(batch.layout.response_slots, scored, strict=True)
        ]
        spans = _neighbours(lengths)
        if layout == "padded":
            starts = range(0, shape[0] * shape[1], shape[1])
            spans = [slice(at, at + length) for at, length in zip(starts, lengths, strict=True)]
        return Tokens(shape=shape, spans=spans, scored_spans=_neighbours(scored))

    def flat(self, tensor: Tensor) -> Tensor | None:
        """The tensor with one axis for all tokens in front, if it has them in their order."""
        num_rows, width = self.shape
        if tensor.dim() >= 2 and tuple(tensor.shape[:2]) == self.shape:
            return tensor.flatten(0, 1)
        if tensor.dim() >= 1 and tensor.shape[0] == num_rows * width:
            return tensor
        return None

    def are_in(self, output: Any) -> bool:
        """Whether what a layer returned has them in their order, in all its tensors."""
        floats = floats_of(output)
        return bool(floats) and all(self.flat(each) is not None for each in floats)

    def only(self, span: slice, slope: Tensor) -> Tensor:
        """The derivative where some tokens are, 0 elsewhere."""
        masked = torch.zeros_like(slope, memory_format=torch.contiguous_format)
        flat, source = self.flat(masked), self.flat(slope)
        assert flat is not None
        assert source is not None
        flat[span] = source[span]
        return masked


def floats_of(output: Any) -> list[Tensor]:
    """The tensors among what a layer returned that may have a derivative."""
    return [each for each in tree_leaves(output) if is_float(each)]


def is_float(value: Any) -> bool:
    """Whether a value is a tensor that may have a derivative."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _neighbours(lengths: Iterable[int]) -> Spans:
    return [slice(start, stop) for start, stop in pairwise([0, *accumulate(lengths)])]
