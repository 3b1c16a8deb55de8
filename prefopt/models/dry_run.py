"""What a micro-batch takes beside the weights, found by running it on tensors without memory.

The model, its attention and its head are those that train. Attention is that of CPUs: GPUs have
other kernels, which keep the same.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from prefopt.errors import UserError
from prefopt.models.blueprint import Blueprint
from prefopt.models.tokenizer import first_line
from prefopt.types import GroupBatch, Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A micro-batch by its size: as few and long texts as give its shape."""

    prompt: int
    """Tokens of the prompt, at least 1."""
    responses: tuple[int, ...]
    """Tokens of each response, at least 1 each; in padded rows they are of one length."""

    def num_tokens(self, *, is_padded: bool) -> int:
        """That the model reads."""
        num_prompts = len(self.responses) if is_padded else 1
        return num_prompts * self.prompt + sum(self.responses)


def working_memory(
    blueprint: Blueprint, row: Row, *, is_autocast: bool, is_recomputed: bool
) -> int:
    """Most bytes that forward and backward pass of a micro-batch hold at once.

    Weights and their gradients are there before, so this is what a second micro-batch takes.

    Args:
        blueprint: the model.
        row: the micro-batch.
        is_autocast: whether products run in bfloat16 beside weights of another type.
        is_recomputed: whether the layers run again in the backward pass (gradient checkpointing).

    Raises:
        UserError: if an operation of the model needs content, as routing to experts does.
    """
    model = blueprint.model.train()
    _switch_recomputation(model, is_on=is_recomputed)
    batch = _fake(_batch(row), blueprint)
    with blueprint.fakes:
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        try:
            with _Peak(_outside(model, batch)) as peak:
                _forward_and_backward(model, batch, is_autocast=is_autocast)
        except RuntimeError as error:
            raise UserError(
                f"model.path: a pass of {type(model).__name__} cannot be run without memory, so "
                f"there is no plan for it: {first_line(error)}"
            ) from error
    most: int = peak.most
    return most


def _forward_and_backward(model: nn.Module, batch: GroupBatch, *, is_autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        found = model(batch=batch, slopes=lambda first, stop, logps: torch.ones_like(logps))
    loss = found["surrogate"] if isinstance(found, dict) else found.sum()
    loss.backward()


def _switch_recomputation(model: PreTrainedModel | PeftModel, *, is_on: bool) -> None:
    # Newer versions of transformers renamed it.
    is_new = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if is_new else "gradient_checkpointing"
    getattr(model, f"{name}_enable" if is_on else f"{name}_disable")()
    if not is_on:
        model.disable_input_require_grads()


def _outside(model: nn.Module, batch: GroupBatch) -> Iterator[Tensor]:
    """What is there before the pass."""
    for weight in model.parameters():
        yield weight
        if weight.grad is not None:
            yield weight.grad
    yield from model.buffers()
    yield from _tensors(batch).values()


class _Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still there."""

    def __init__(self, outside: Iterable[Tensor]) -> None:
        TorchDispatchMode.__init__(self)
        self.most: int = 0
        self._now = 0
        self._seen = WeakIdKeyDictionary({each.untyped_storage(): None for each in outside})

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """The operation, after which what it made is counted."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = None
        size = storage.nbytes()
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._now -= size


def _batch(row: Row) -> GroupBatch:
    """One group of such lengths."""
    num = len(row.responses)
    lengths = torch.tensor(row.responses)
    scored = torch.zeros(sum(row.responses), dtype=torch.int64)
    positions = [torch.arange(row.prompt)]
    positions += [torch.arange(length) + row.prompt for length in row.responses]
    return GroupBatch(
        input_ids=torch.zeros(row.prompt + sum(row.responses), dtype=torch.int64),
        position_ids=torch.cat(positions),
        layout=Layout(
            prompt_lengths=(row.prompt,),
            response_lengths=row.responses,
            response_slots=tuple(range(num)),
            num_slots=num,
        ),
        targets=scored,
        response_of_token=torch.repeat_interleave(torch.arange(num), lengths),
        where=torch.ones(1, num, dtype=torch.bool),
        scores=torch.zeros(1, num),
        num_tokens=lengths.unsqueeze(0),
        ids=("",),
    )


def _fake(batch: GroupBatch, blueprint: Blueprint) -> GroupBatch:
    """The batch without its content."""
    columns: dict[str, Any] = {
        name: blueprint.fakes.from_tensor(tensor) for name, tensor in _tensors(batch).items()
    }
    return replace(batch, **columns)


def _tensors(batch: GroupBatch) -> dict[str, Tensor]:
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in columns.items() if isinstance(value, Tensor)}
