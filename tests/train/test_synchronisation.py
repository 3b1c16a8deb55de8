"""How often a step waits for the device: each time, the device runs dry."""

import itertools
from collections import Counter
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from prefopt.train.step_losses import StepLosses
from tests.support.runs import LORA, run
from tests.support.slow import slow_but
from tests.support.tiny import save_tiny_model, write_lists

# Operations whose results, or their shapes, the host must know before it can go on.
WAITING_OPERATIONS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "masked_select",
    "nonzero",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "allclose",
}
NUMBERS = itertools.count()
WAITING_METHODS = {Tensor.tolist, Tensor.cpu, Tensor.numpy}


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING_OPERATIONS:
            self.found[name] += 1
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.found[name] += 1
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [each for each in args[1] if each is not None and each.dtype == torch.bool]
            self.found[f"{name} with a mask"] += len(masks)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in WAITING_METHODS:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class Watch(TrainerCallback):
    """Counts what waits from the beginning of each step to its end."""

    def __init__(self) -> None:
        self.steps: list[dict[str, int]] = []

    def on_step_begin(self, *_, **__) -> None:
        self.found = Counter()
        self.modes = [_Operations(self.found), _Methods(self.found)]
        for mode in self.modes:
            mode.__enter__()

    def on_step_end(self, *_, **__) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(None, None, None)
        self.steps.append({name: num for name, num in self.found.items() if num})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synchronisation")
    save_tiny_model(folder / "model")
    write_lists(folder / "pairs.jsonl", 6)
    return folder


def steps_of(folder, **sections) -> list[dict[str, int]]:
    watch = Watch()
    with patch("prefopt.commands.assemble._callbacks", lambda recipe: [watch]):
        run(
            folder,
            f"run-{next(NUMBERS)}",
            training={"max_steps": 3, "groups_per_step": 3, "tokens_per_micro_batch": 80},
            **sections,
        )
    return watch.steps


NAMES = ["dpo", "lipo", "dr_dpo", "pairwise_cringe", "infonca", "simpo"]


@pytest.mark.parametrize("name", slow_but(["dr_dpo", "pairwise_cringe"], NAMES))
@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_step_waits_for_the_device_once(folder, name, adapter):
    objective = {"name": name, **({"alpha": 1.0} if name == "infonca" else {})}
    sections = {} if adapter is None else {"adapter": adapter}

    first, *others = steps_of(folder, objective=objective, **sections)

    # The first also compares the model's log-probs with its own logits.
    assert first["_local_scalar_dense"] >= 1
    # Loss, metrics and gradient norm, together.
    assert others == [{"tolist": 1}] * 2


def test_a_step_that_reads_its_loss_is_seen_to_wait(folder):
    loss_of = StepLosses.loss_of

    def impatient(self, number):
        loss = loss_of(self, number)
        assert loss.item() < 100.0
        return loss

    with patch.object(StepLosses, "loss_of", impatient):
        _, *others = steps_of(folder, objective={"name": "dpo"})

    assert all(step["_local_scalar_dense"] >= 1 for step in others)
