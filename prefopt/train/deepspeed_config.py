"""A DeepSpeed configuration beside a recipe: the recipe says what is learned, the file how.

What a launch configuration of accelerate says of DeepSpeed has become such a configuration too.
"""

from collections.abc import Callable
from typing import Any

from transformers import TrainingArguments

from prefopt.errors import UserError

_LAUNCH = "launch with recipes/accelerate/ddp.yaml"

# What each key must be if it is neither left out nor `auto`, and the recipe's key that says so.
_DECIDED: dict[str, tuple[str, Callable[[TrainingArguments], Any]]] = {
    "train_micro_batch_size_per_gpu": ("training.groups_per_step", lambda _: 1),
    "gradient_accumulation_steps": ("training.groups_per_step", lambda _: 1),
    "train_batch_size": ("training.groups_per_step", lambda arguments: arguments.world_size),
    "gradient_clipping": ("training.max_grad_norm", lambda arguments: arguments.max_grad_norm),
    "bf16.enabled": ("training.bf16", lambda arguments: arguments.bf16),
    "fp16.enabled": ("training.fp16", lambda _: False),
    "amp.enabled": ("training.bf16", lambda _: False),
    "torch_autocast.enabled": ("training.bf16", lambda _: False),
    "tensor_parallel.autotp_size": ("training.groups_per_step", lambda _: 1),
    "sequence_parallel_size": ("training.groups_per_step", lambda _: 1),
    # Without these the engine moves the weights by gradients that are not finite.
    "bf16.check_grad_overflow": ("training.max_skipped_steps", lambda _: True),
    "zero_optimization.compute_grad_norm": ("training.max_skipped_steps", lambda _: True),
}

# Sections that would take the place of what the recipe says.
_IN_THE_WAY = {
    "optimizer": "training.optim",
    "scheduler": "training.lr_scheduler_type",
    "curriculum_learning": "training.shuffle",
    "data_efficiency": "training.shuffle",
    "progressive_layer_drop": "model.dropout",
    "compression_training": "model.quantization",
}

_OFFLOADABLE = ("adamw_torch", "adamw_torch_fused", "adagrad")


def match_deepspeed(config: dict[str, Any], arguments: TrainingArguments) -> None:
    """Fill in what the recipe says; clip where it says, and save weights that can be loaded again.

    A configuration without `gradient_clipping` clips at 1.0, whatever `max_grad_norm` says.

    Args:
        config: the whole configuration, which is changed.
        arguments: what the recipe says.

    Raises:
        UserError: naming the configuration's key and the recipe's, where they contradict each
            other or DeepSpeed would do something else without a word.
    """
    for key, (recipe_key, wanted) in _DECIDED.items():
        _check_value(config, key, recipe_key, wanted(arguments))
    for section, recipe_key in _IN_THE_WAY.items():
        given = config.get(section)
        if given and (not isinstance(given, dict) or given.get("enabled", True)):
            raise UserError(
                f"{recipe_key}: the DeepSpeed configuration has a section {section}, which would "
                "take its place. Remove the section there."
            )
    zero = config.setdefault("zero_optimization", {})
    _check_zero(zero)
    _check_offload(config, zero, arguments)
    config.setdefault("train_micro_batch_size_per_gpu", "auto")
    config["gradient_clipping"] = arguments.max_grad_norm
    if zero["stage"] == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True


def _check_value(config: dict[str, Any], key: str, recipe_key: str, wanted: Any) -> None:
    *parents, name = key.split(".")
    place: Any = config
    for parent in parents:
        place = place.get(parent) or {}
    given = place.get(name, "auto")
    if given not in ("auto", wanted):
        raise UserError(
            f"{recipe_key}: the DeepSpeed configuration says {key} {_word(given)}, where the "
            f"recipe wants {_word(wanted)}. Set it to auto there, or remove it."
        )


def _word(value: Any) -> str:
    """As JSON and YAML write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_zero(zero: dict[str, Any]) -> None:
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise UserError(
            f"training.deepspeed: zero_optimization.stage should be 1, 2 or 3, got {stage}. "
            f"To shard nothing, {_LAUNCH}."
        )


def _check_offload(
    config: dict[str, Any], zero: dict[str, Any], arguments: TrainingArguments
) -> None:
    """Refuse optimisers in whose place an offloaded run would silently get Adam."""
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    name = str(getattr(arguments.optim, "value", arguments.optim))
    if device == "none" or not config.get("zero_force_ds_cpu_optimizer", True):
        return
    if name not in _OFFLOADABLE:
        raise UserError(
            f"training.optim: {name} would become Adam where the DeepSpeed configuration says "
            f"zero_optimization.offload_optimizer.device {device}. Choose adamw_torch, or set "
            "offload_optimizer to none there."
        )
