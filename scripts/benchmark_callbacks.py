"""What hangs in both trainers alike: a watch for the gate, and a clock for turns."""

import contextlib
import ctypes
import gc
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmark_arms import Turn
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS


class Stop(Exception):
    """Ends a run without what a trainer does at its end."""


@contextlib.contextmanager
def hung_in(callback: TrainerCallback) -> Iterator[None]:
    """Every trainer that is built meanwhile has the callback, which may stop it."""
    DEFAULT_CALLBACKS.append(callback)
    try:
        with contextlib.suppress(Stop):
            yield
    finally:
        DEFAULT_CALLBACKS.remove(callback)


def timed(action: Callable[..., Any], callback: TrainerCallback) -> Callable[..., Any]:
    """The same action, whose seconds the callback is told."""

    def act(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        answer = action(*args, **kwargs)
        vars(callback)["reference_seconds"] = time.perf_counter() - began
        return answer

    return act


class Watch(TrainerCallback):
    """Takes down what is compared between arms, from inside their own training."""

    def __init__(self) -> None:
        self.logps: dict[str, float] = {}
        self.gradient: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.num_tokens = 0

    def on_train_begin(self, *_: Any, model: nn.Module, train_dataloader: Any, **__: Any) -> None:
        """Log-probs before the first step; then count the tokens of one."""
        model.eval()
        with torch.no_grad():
            is_ours = hasattr(train_dataloader.dataset, "plan")
            self.logps = (_our_logps if is_ours else _logps_of_trl)(model, train_dataloader)
        # Whatever is a model's embedding: the policy's and a live reference's.
        self._handle = nn.modules.module.register_module_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor], _: Any) -> None:
        if isinstance(module, nn.Embedding):
            self.num_tokens += inputs[0].numel()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Only the last step counts: the first also checks the model."""
        self.num_tokens = 0

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Of the first step."""
        if not self.gradient:
            self.gradient = {
                name: _part(parameter.grad)
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Of every step."""
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.grad_norms.append(logs["grad_norm"])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Nothing need be saved."""
        self._handle.remove()
        raise Stop


def _part(gradient: Tensor) -> Tensor:
    """All of it, or evenly spaced elements of a large one."""
    # Odd, so that the elements are not all of one column.
    stride = gradient.numel() // 2**22 * 2 + 1
    return gradient.flatten()[::stride].float().cpu().clone()


def _our_logps(model: nn.Module, loader: Any) -> dict[str, float]:
    from prefopt.models.layout import token_logps

    found = {}
    for batch in loader.dataset[0, 0].micro_batches:
        batch = batch.to(next(model.parameters()).device)
        layout = batch.layout
        # Of summed float32 the last digit is worth 1e-4.
        per_response = token_logps(model, batch).double().split(layout.response_lengths)
        prompts = batch.input_ids[: layout.num_prompt_tokens].split(layout.prompt_lengths)
        responses = batch.targets.split(layout.response_lengths)
        for slot, ids, logps in zip(layout.response_slots, responses, per_response, strict=True):
            row = torch.cat([prompts[slot // layout.num_slots], ids])
            found[_name(row)] = logps.sum().item()
    return found


def _logps_of_trl(model: nn.Module, loader: Any) -> dict[str, float]:
    found = {}
    for inputs in loader:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        labels = ids.masked_fill(inputs["completion_mask"] == 0, -100)
        outputs = model(
            input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True
        )
        for row, is_real, logps in zip(ids, mask.bool(), outputs.log_probs.double(), strict=True):
            found[_name(row[is_real])] = logps.sum().item()
    return found


def _name(row: Tensor) -> str:
    return hashlib.sha256(json.dumps(row.tolist()).encode()).hexdigest()[:16]


class Turns(TrainerCallback):
    """Trains as many steps as it is told, says how long each took, and waits.

    Without a connection it runs to the end.
    """

    def __init__(self, connection: Connection | None, device: str) -> None:
        self.seconds: list[float] = []
        self.reference_seconds = 0.0
        self._connection = connection
        self._is_cuda = device == "cuda"
        self._left = 0
        self._since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Ready: says what memory is taken before the first step."""
        forget_peak(self._is_cuda)
        if self._connection is not None:
            self._connection.send(memory(self._is_cuda))
        self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is the time since the last one ended: data and logs belong to it."""
        self.seconds.append(self._now() - self._since)
        self._left -= 1
        if self._left == 0 and self._connection is not None:
            self._connection.send(
                Turn(
                    seconds=self.seconds,
                    memory=memory(self._is_cuda),
                    reference_seconds=self.reference_seconds,
                )
            )
            self.seconds = []
            self._wait()
        self._since = self._now()

    def _wait(self) -> None:
        if self._connection is not None:
            order = self._connection.recv()
            if order is None:
                raise Stop
            self._left = order
        self._since = self._now()

    def _now(self) -> float:
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Nothing need be saved."""
        raise Stop


def forget_peak(is_cuda: bool) -> None:
    """Count from here, without what earlier checks have left behind."""
    gc.collect()
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory(is_cuda: bool) -> dict[str, float]:
    """MiB: resident now and at the peak, or allocated now, and allocated and reserved at the peak.

    Of the GPU's memory only this process's part is counted.
    """
    mib = 2**20
    if is_cuda:
        return {
            "now": torch.cuda.memory_allocated() / mib,
            "peak": torch.cuda.max_memory_allocated() / mib,
            "peak_reserved": torch.cuda.max_memory_reserved() / mib,
        }
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    now, peak = (re.search(rf"{key}:\s*(\d+) kB", status) for key in ("VmRSS", "VmHWM"))
    assert now is not None
    assert peak is not None
    return {"now": int(now[1]) / 1024, "peak": int(peak[1]) / 1024}
