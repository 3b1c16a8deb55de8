"""Every key of TRL's configs reaches the recipe, or is named with the reason why it does not."""

import dataclasses
import typing
from typing import Any

import pytest

from prefopt.commands.convert import recipe_text
from prefopt.commands.convert_config import TRAINERS, trl_fields
from prefopt.errors import UserError
from tests.support.tiny import save_tiny_model

EVALUATED = {"eval_strategy": "epoch"}
ADAPTER = {"use_peft": True, "lora_target_modules": "all-linear"}
MIXTURE = {"datasets": [{"path": "some/data"}]}

BESIDE: dict[str, dict[str, Any]] = {
    "dataset_test_split": EVALUATED,
    "eval_steps": {"eval_strategy": "steps"},
    "eval_delay": EVALUATED,
    "eval_on_start": EVALUATED,
    "metric_for_best_model": EVALUATED,
    "greater_is_better": EVALUATED,
    "load_best_model_at_end": EVALUATED,
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True},
    "torch_compile": {"gradient_checkpointing": False},
    "lora_r": ADAPTER,
    "lora_alpha": ADAPTER,
    "lora_dropout": {**ADAPTER, "disable_dropout": False},
    "lora_target_modules": ADAPTER,
    "lora_modules_to_save": ADAPTER,
    "lora_target_parameters": ADAPTER,
    "lora_task_type": ADAPTER,
    "use_rslora": ADAPTER,
    "use_dora": ADAPTER,
    "use_peft": {"lora_target_modules": "all-linear"},
    "load_in_4bit": ADAPTER,
    "bnb_4bit_quant_type": {**ADAPTER, "load_in_4bit": True},
    "test_split_size": MIXTURE,
    "streaming": MIXTURE,
    "simpo_gamma": {"loss_type": "simpo"},
}
"""What TRL reads some keys beside."""

NEVER_READ = {
    "label_smoothing": "of dpo: read for robust and exo_pair, both below",
    "discopop_tau": "beside loss_type: discopop, which is refused",
    "f_alpha_divergence_coef": "beside f_divergence_type: alpha_divergence, which is refused",
    "ref_model_mixup_alpha": "beside sync_ref_model, which is refused",
    "ref_model_sync_steps": "beside sync_ref_model, which is refused",
}
"""Keys that say nothing where the rest can be converted, and why."""

VALUES: dict[str, Any] = {
    "loss_type": {"dpo": "hinge", "kto": "apo_zero_unpaired", "cpo": "simpo"},
    "loss_weights": [0.5],
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 1},
    "warmup_steps": 3,
    "optim": "sgd",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_strategy": "epoch",
    "report_to": "wandb",
    "debug": "underflow_overflow",
    "deepspeed": "zero.json",
    "fsdp": "full_shard",
    "train_sampling_strategy": {"kto": "random"},
    "truncation_mode": "keep_end",
    "f_divergence_type": "forward_kl",
    "dtype": "bfloat16",
    "bnb_4bit_quant_type": "fp4",
    "datasets": [{"path": "other/data"}],
    "bf16": False,
    "test_split_size": 0.1,
    "eval_steps": 7,
    "log_level": "error",
    "log_level_replica": "error",
    "trackio_static_space_id": "space",
}
"""Values that a key can have, where its type does not say one."""


def other_value(field: Any, trainer: str) -> Any:
    """A value that is not the default."""
    if field.name in VALUES:
        value = VALUES[field.name]
        return value.get(trainer, "sequential") if _by_trainer(value) else value
    members = {typing.get_origin(m) or m for m in typing.get_args(field.type) or (field.type,)}
    default = None if field.default is dataclasses.MISSING else field.default
    if bool in members:
        return not default
    if float in members:
        return 0.25
    if int in members:
        return 7
    if str in members:
        return "other"
    return ["other"] if list in members else {"some": 1}


def _by_trainer(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & set(TRAINERS))


OUTCOMES = ("in the recipe", "left out", "refused", "without effect")


def body(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def outcome(key: str, values: dict[str, Any], value: Any, trainer: str) -> str:
    """What becomes of a key: in the recipe, left out with a reason, refused with one, or lost."""
    try:
        text, notes = recipe_text({**values, key: value}, trainer=trainer)
    except UserError as error:
        lines = [line for line in str(error).splitlines() if line.startswith(f"{key}: ")]
        return "refused" if f"--skip {key}" in "".join(lines) else str(error)
    said = [note for note in notes if note.startswith(f"left out {key}: ")]
    if said:
        return "without effect" if "does not read it" in said[0] else "left out"
    before, _ = recipe_text(values, trainer=trainer)
    return "in the recipe" if body(text) != body(before) else "lost"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("convert") / "model"))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_key_is_converted_left_out_or_refused(trainer: str, model: str):
    fields = trl_fields(trainer)
    shared = trl_fields("dpo").keys() - {"loss_type", "train_sampling_strategy"}
    found = {}
    for key in fields.keys() - (set() if trainer == "dpo" else shared):
        values = {"model_name_or_path": model, "dataset_name": "some/data", **BESIDE.get(key, {})}
        value = other_value(fields[key], trainer)
        found[key] = outcome(key, values, value, trainer)

    assert {key for key, said in found.items() if said == "without effect"} <= set(NEVER_READ)
    assert {key: said for key, said in found.items() if said not in OUTCOMES} == {}
