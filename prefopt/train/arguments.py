"""The recipe's training section as transformers.TrainingArguments."""

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from transformers import TrainingArguments

from prefopt.errors import UserError
from prefopt.train.section import TrainingSection

_DEFAULTS: dict[str, Any] = {
    "logging_steps": 10,
    "save_strategy": "epoch",
    "report_to": "none",
}

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


def training_arguments(
    section: TrainingSection, *, has_evaluation: bool, keep_best: bool = False
) -> TrainingArguments:
    """Arguments for the trainer, with prefopt's defaults.

    Args:
        section: what the recipe says.
        has_evaluation: evaluate every epoch unless the recipe says otherwise.
        keep_best: keep track of the best evaluation loss unless the recipe names a metric.

    Raises:
        UserError: for values that transformers refuses, or that exclude each other.
    """
    values = {**_DEFAULTS, **section.arguments}
    if has_evaluation:
        values.setdefault("eval_strategy", "epoch")
    if keep_best or section.early_stopping_patience is not None:
        values.setdefault("metric_for_best_model", "eval_loss")
    values.update(_launched_on_cpus())
    try:
        arguments = TrainingArguments(output_dir=str(section.output_dir), **{**values, **_FIXED})
    except (ValueError, ImportError) as error:
        raise UserError(f"training: {str(error).splitlines()[0]}") from error
    _match_deepspeed(arguments)
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and "use_cpu" in values:
        # accelerate 1.15 shards only what it counts as processes on GPUs; on CPUs it would run
        # plain DDP without a word. Its code for FSDP2 itself does not care for the device.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    return arguments


def _launched_on_cpus() -> dict[str, Any]:
    """What several processes on a machine without accelerator need to find each other."""
    if torch.accelerator.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return {"ddp_backend": "gloo"}
    return {"use_cpu": True}


def _match_deepspeed(arguments: TrainingArguments) -> None:
    """Make DeepSpeed clip where the recipe says and save weights that can be loaded again.

    A configuration without `gradient_clipping` clips at 1.0, whatever `max_grad_norm` says.
    """
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is None:
        return
    config = plugin.deepspeed_config
    clipping = config.get("gradient_clipping", "auto")
    if clipping not in ("auto", arguments.max_grad_norm):
        raise UserError(
            f"training.max_grad_norm is {arguments.max_grad_norm}, the DeepSpeed configuration "
            f"says gradient_clipping {clipping}. Set it to auto there."
        )
    config["gradient_clipping"] = arguments.max_grad_norm
    if config.get("zero_optimization", {}).get("stage") == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
