"""The recipe's training section as transformers.TrainingArguments."""

import dataclasses
import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from prefopt.errors import UserError
from prefopt.train.checks import (
    LIBRARY_ERRORS,
    as_one_line,
    check_arguments,
    check_compiled,
    check_evaluation,
    check_processes,
    strategies_of_steps,
)
from prefopt.train.deepspeed_config import match_deepspeed
from prefopt.train.section import TrainingSection
from prefopt.train.without_effect import check_effects

DEFAULTS: dict[str, Any] = {
    "logging_steps": 10,
    "save_strategy": "epoch",
    "report_to": "none",
    # Every parameter takes part in every step, and the search for others costs a walk through the
    # graph each time. A mixture of experts, where some get no token, needs true.
    "ddp_find_unused_parameters": False,
}
"""Where prefopt's defaults are not those of transformers."""

# One data item is one optimiser step's share of a rank, so the Trainer's own batching is switched
# off; a loss that is not finite must be seen, not averaged away.
_FIXED: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
    "restore_callback_states_from_checkpoint": True,
    "disable_tqdm": True,
}

# Newer versions of transformers renamed what every published recipe writes.
_NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def training_arguments(section: TrainingSection, *, has_evaluation: bool) -> TrainingArguments:
    """Arguments for the trainer, with prefopt's defaults.

    Args:
        section: what the recipe says.
        has_evaluation: evaluate every epoch unless the recipe says otherwise; without it, what
            needs evaluations is refused.

    Raises:
        UserError: for values that transformers refuses, that exclude each other, or that would do
            nothing.
    """
    given = section.arguments
    check_evaluation(given, has_evaluation=has_evaluation)
    check_processes(given)
    if section.torch_compile:
        check_compiled(given)
    values = {**DEFAULTS, **_in_new_words(given), **strategies_of_steps(given)}
    if has_evaluation:
        values.setdefault("eval_strategy", "epoch")
    if section.early_stopping_patience is not None:
        values.setdefault("metric_for_best_model", "eval_loss")
    values.update(_on_cpus())
    try:
        for tracker in get_reporting_integration_callbacks(values["report_to"]):
            tracker()
        arguments = TrainingArguments(output_dir=str(section.output_dir), **{**values, **_FIXED})
    except LIBRARY_ERRORS as error:
        line = as_one_line(error)
        raise UserError(line if line.startswith("training.") else f"training: {line}") from error
    check_arguments(arguments, given)
    check_effects(arguments, given)
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is not None:
        match_deepspeed(plugin.deepspeed_config, arguments)
    is_launched = torch.distributed.is_initialized()
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and "use_cpu" in values and is_launched:
        # accelerate 1.15 shards only what it counts as processes on GPUs; on CPUs it would run
        # plain DDP without a word. Its code for FSDP2 itself does not care for the device.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    return arguments


def _in_new_words(values: dict[str, Any]) -> dict[str, Any]:
    """The same keys, by the names that the installed transformers does not warn of."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {
        new if (new := _NEW_NAMES.get(key, key)) in known and new not in values else key: value
        for key, value in values.items()
    }


def _on_cpus() -> dict[str, Any]:
    """What processes on a machine without accelerator need to find each other and to run bf16."""
    if torch.accelerator.is_available():
        return {}
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return {"ddp_backend": "gloo"} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
    return {"use_cpu": True}


def keep_log_probs_wide(accelerator: Accelerator) -> None:
    """Keep FSDP2 from rounding what the model returns to bfloat16, which holds 3 digits."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, output_dtype=None
        )
