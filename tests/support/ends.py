"""Whether two runs ended in the same bits, whatever happened on the way."""

import json
from pathlib import Path

import numpy as np
import torch

_TIMES = ("tokens_per_second", "train_runtime", "train_steps_per_second")
# Text of the libraries' own that says when or where, and files that depend on such text.
_OTHER = ("README.md", "training_args.bin", "manifest.json", "curves.png")


def differences(run: Path, other: Path) -> list[str]:
    """What differs between two run folders, but for times and names; nothing if they are equal.

    Weights are compared as bytes, tensors of all other files one by one, and every number of the
    metrics. Both folders must hold files of the same names.
    """
    names, others = _names(run), _names(other)
    if names != others:
        return [f"only one has {name}" for name in sorted(names ^ others)]
    return [name for name in sorted(names) if not _same(run / name, other / name)]


def metrics(run: Path) -> list[dict[str, float]]:
    """All lines of metrics.jsonl without times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [_timeless(json.loads(line)) for line in lines]


def equal(one: object, other: object) -> bool:
    """Whether two values, with tensors anywhere inside, are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if type(one) is not type(other):
        return False
    # DeepSpeed stores objects of its own, which have no equality but that of identity.
    fields = getattr(one, "__dict__", None)
    return equal(fields, vars(other)) if fields else bool(np.all(one == other))


def _names(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}


def _same(file: Path, other: Path) -> bool:
    if file.is_dir() or file.name in _OTHER:
        return True
    if file.name == "metrics.jsonl":
        return metrics(file.parent) == metrics(other.parent)
    if file.name == "trainer_state.json":
        return _trainer_state(file) == _trainer_state(other)
    if file.name == "prefopt_state.json":
        return _our_state(file) == _our_state(other)
    if file.suffix in (".pt", ".pth", ".bin"):
        return equal(_loaded(file), _loaded(other))
    return file.read_bytes() == other.read_bytes()


def _loaded(file: Path) -> object:
    # Random states of numpy, and DeepSpeed's own classes, are no plain tensors.
    content = torch.load(file, map_location="cpu", weights_only=False)
    if file.name.startswith("rng_state"):
        # The checks of types that run in tests draw from Python's own generator, training does not.
        del content["python"]
    return content


def _trainer_state(file: Path) -> dict[str, object]:
    state = json.loads(file.read_text(encoding="utf-8"))
    return {**state, "log_history": [_timeless(line) for line in state["log_history"]]}


def _our_state(file: Path) -> dict[str, object]:
    # The length of metrics.jsonl depends on how many digits a time has.
    state = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in state.items() if key != "metrics_bytes"}


def _timeless(line: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key not in _TIMES}
