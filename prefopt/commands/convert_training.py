"""The section `training` of the recipe that a TRL config becomes."""

import dataclasses
from collections.abc import Callable
from typing import Any

from transformers import TrainingArguments

from prefopt.commands.convert_config import TrlConfig, default_of
from prefopt.commands.convert_draft import Draft
from prefopt.train.arguments import DEFAULTS
from prefopt.train.section import REFUSED

_TRLS_DEFAULT = "TRL's default"
_OUTPUT = "trainer_output"
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")
# Responses in a row of the trainer's data.
_RESPONSES = {"dpo": 2, "kto": 1, "cpo": 2, "orpo": 2}


def _evaluates(config: TrlConfig) -> bool:
    return bool(config["eval_strategy"] != "no")


def _recomputes(config: TrlConfig) -> bool:
    # The newer name stands above the older one, of which TRL has the default.
    names = ("activation_checkpointing", "gradient_checkpointing")
    said = [config[name] for name in names if name in config]
    return next(bool(value) for value in said if value is not None)


def _always(config: TrlConfig) -> bool:
    return True


_READ_IF: dict[str, Callable[[TrlConfig], bool]] = {
    "eval_steps": lambda config: bool(config["eval_strategy"] == "steps"),
    "eval_delay": _evaluates,
    "eval_on_start": _evaluates,
    "metric_for_best_model": _evaluates,
    "greater_is_better": _evaluates,
    "load_best_model_at_end": _evaluates,
    "save_steps": lambda config: bool(config["save_strategy"] == "steps"),
    "logging_steps": lambda config: bool(config["logging_strategy"] == "steps"),
    "warmup_steps": lambda config: config["lr_scheduler_type"] not in _WITHOUT_WARMUP,
    "gradient_checkpointing_kwargs": _recomputes,
    "activation_checkpointing_kwargs": _recomputes,
    "torch_compile": lambda config: not _recomputes(config),
}
"""Keys that a recipe refuses where they have no effect, and when they have one."""

_WRITTEN_FIRST = ("learning_rate", "bf16", "gradient_checkpointing", "activation_checkpointing")
_NOT_ASKED = {*REFUSED, *_WRITTEN_FIRST, "output_dir"}


def write_training(config: TrlConfig, draft: Draft) -> None:
    """How it trains: the step, and each number that would be another one if it were not said."""
    _write_step(config, draft)
    _put(config, draft, "learning_rate")
    draft.put("training", "bf16", _is_bf16(config), _said(config, "bf16"))
    comment = _said(config, "gradient_checkpointing", "activation_checkpointing")
    draft.put("training", "gradient_checkpointing", _recomputes(config), comment)
    if _recomputes(config) and config["torch_compile"]:
        config.leave_out("torch_compile", "layers are not compiled beside gradient_checkpointing")
    for key, ours in _our_defaults("evaluation" in draft.sections["data"]).items():
        if key in _NOT_ASKED or not _READ_IF.get(key, _always)(config):
            continue
        if config[key] is not None and config[key] != ours:
            _put(config, draft, key)


def _our_defaults(has_evaluation: bool) -> dict[str, Any]:
    theirs = {field.name: default_of(field) for field in dataclasses.fields(TrainingArguments)}
    return theirs | DEFAULTS | ({"eval_strategy": "epoch"} if has_evaluation else {})


def _write_step(config: TrlConfig, draft: Draft) -> None:
    output = config["output_dir"]
    draft.put("training", "output_dir", output or _OUTPUT, _said(config, "output_dir"))
    batch, steps = config["per_device_train_batch_size"], config["gradient_accumulation_steps"]
    number = config.processes
    factors = f"{batch} x {steps} x {number} process{'es' if number > 1 else ''}"
    draft.put("training", "groups_per_step", batch * steps * number, factors)
    length = config["max_length"]
    if length is not None:
        responses = batch * _RESPONSES[config.trainer]
        comment = f"{responses} x {length}, as a pass of TRL; it changes no update"
        draft.put("training", "tokens_per_micro_batch", responses * length, comment)
    order = config["train_sampling_strategy"]
    if order == "sequential":
        draft.put("training", "shuffle", False, _said(config, "train_sampling_strategy"))
    elif order != "random":
        config.leave_out("train_sampling_strategy", "micro-batches are balanced by tokens anyway")


def _is_bf16(config: TrlConfig) -> bool:
    # Half precision is refused, so what is left where nothing is said is TRL's bfloat16.
    return True if config["bf16"] is None else bool(config["bf16"])


def _put(config: TrlConfig, draft: Draft, key: str) -> None:
    value = config[key]
    # transformers has enums for words.
    draft.put("training", key, getattr(value, "value", value), _said(config, key))


def _said(config: TrlConfig, *keys: str) -> str:
    """The comment behind a number that the file does not say."""
    return "" if any(config.says(key) for key in keys) else _TRLS_DEFAULT
