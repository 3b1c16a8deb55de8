"""What a recipe says of training: our own keys, and those of transformers.TrainingArguments."""

import math
import typing
from pathlib import Path
from typing import Any

from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from prefopt.errors import UserError, did_you_mean
from prefopt.section import Section

_PLAN = "the step plan decides this; use training.groups_per_step and tokens_per_micro_batch"
_NOT_OURS = "the objective and the data decide this; it would have no effect here"
_OWN_FOLDER = "prefopt writes its run folder itself; push the finished folder with `hf upload`"
_LOADER = "the step plan loads whole steps itself; training.dataloader_num_workers has an effect"
_FLAG = "say it on the command line: prefopt train RECIPE --resume"

REFUSED = {
    "per_device_train_batch_size": _PLAN,
    "per_device_eval_batch_size": _PLAN,
    "gradient_accumulation_steps": _PLAN,
    "auto_find_batch_size": _PLAN,
    "train_sampling_strategy": "the step plan decides this; use training.shuffle and training.seed",
    "dataloader_drop_last": _PLAN,
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "length_column_name": _PLAN,
    "group_by_length": _PLAN,
    "accelerator_config": _PLAN,
    "label_smoothing_factor": "smoothing belongs to the objective; see objective.label_smoothing",
    "neftune_noise_alpha": _NOT_OURS,
    "label_names": _NOT_OURS,
    "remove_unused_columns": _NOT_OURS,
    "prediction_loss_only": _NOT_OURS,
    "batch_eval_metrics": _NOT_OURS,
    "eval_accumulation_steps": _NOT_OURS,
    "eval_do_concat_batches": _NOT_OURS,
    "include_for_metrics": _NOT_OURS,
    "eval_use_gather_object": _NOT_OURS,
    "average_tokens_across_devices": "a step's denominators always count the groups of all ranks",
    "torch_empty_cache_steps": "not supported; lower training.tokens_per_micro_batch instead",
    "disable_tqdm": "progress is drawn on a terminal and left out of a log file",
    "include_num_input_tokens_seen": "tokens per second are always logged",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "restore_callback_states_from_checkpoint": "a resumed run always restores them",
    "fp16": "float16 overflows on summed log-probs; use bf16",
    "fp16_full_eval": "float16 overflows on summed log-probs; use bf16",
    "bf16_full_eval": "evaluation runs in the precision of training; use bf16",
    "torch_compile_backend": "layers are compiled by torch's own backend; use torch_compile: true",
    "torch_compile_mode": "layers are compiled by torch's own backend; use torch_compile: true",
    "use_liger_kernel": "not supported: the log-prob head replaces it",
    "liger_kernel_config": "not supported: the log-prob head replaces it",
    "use_cache": "scoring keeps no keys and values, and the saved model's own setting stays",
    "local_rank": "the launcher says it to each process",
    "save_on_each_node": "the first process writes the run's folder, which all machines share",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint without it",
    "parallelism_config": "not supported; use --accelerate with ddp, fsdp2, zero2 or zero3",
    "do_train": "prefopt train trains",
    "do_eval": "use training.eval_strategy",
    "do_predict": "there is nothing to predict",
    "ignore_data_skip": "a resumed run continues exactly where it stopped",
    "resume_from_checkpoint": _FLAG,
    "overwrite_output_dir": "say it on the command line: prefopt train RECIPE --overwrite",
    "push_to_hub": _OWN_FOLDER,
    "hub_model_id": _OWN_FOLDER,
    "hub_strategy": _OWN_FOLDER,
    "hub_token": _OWN_FOLDER,
    "hub_private_repo": _OWN_FOLDER,
    "hub_always_push": _OWN_FOLDER,
    "hub_revision": _OWN_FOLDER,
}
"""Keys of TrainingArguments that would fight the plan or do nothing, and what to do instead."""

_OLD_NAMES = {
    "warmup_ratio": "use training.warmup_steps, where a number below 1 such as 0.1 is a ratio",
    "evaluation_strategy": "use training.eval_strategy",
    "no_cuda": "use training.use_cpu",
    "use_mps_device": "an accelerator is found by itself; training.use_cpu keeps off it",
    "per_gpu_train_batch_size": _PLAN,
    "per_gpu_eval_batch_size": _PLAN,
    "save_safetensors": "weights are always saved as safetensors",
    "half_precision_backend": "use training.bf16",
    "max_length": "use data.max_length",
    "beta": "use objective.beta",
    "loss_type": "use objective.name",
}
"""Keys of older versions and of other trainers, and what to do instead."""

_NOT_NEGATIVE = ("learning_rate", "seed", "data_seed", "dataloader_num_workers")
_POSITIVE = ("num_train_epochs", "logging_steps", "save_steps", "eval_steps")


class TrainingSection(Section):
    """How to train: our own keys, and those of transformers.TrainingArguments.

    The latter are checked as such:
    learning_rate, num_train_epochs, max_steps, lr_scheduler_type, warmup_steps, optim, bf16,
    gradient_checkpointing, eval_strategy, save_steps, logging_steps, report_to, seed, and so on.
    """

    model_config = ConfigDict(extra="allow")

    output_dir: Path
    """The run's folder: checkpoints, metrics, curves and the trained model."""
    groups_per_step: int | dict[str, int] = 32
    """Prompts that one optimiser step learns from, over all ranks and micro-batches. Where sources
    have roles, so many of each role; or a number for each, such as {forget: 8, retain: 16}."""
    tokens_per_micro_batch: int = Field(default=16384, ge=1)
    """Tokens that one forward pass may hold, padding included; lower it when memory runs out. A
    group that is larger is computed in pieces. It never changes an update beyond rounding."""
    torch_compile: bool = False
    """Compile the model's layers with torch.compile. The first steps take longer; not with
    DeepSpeed, FSDP, 4-bit weights or gradient_checkpointing."""
    normalise_gradients: bool = False
    """Make the log-prob gradients of a group's responses equally long. A step on a pair alone then
    lifts the chosen response and lowers the rejected one, where the objective wants both equally,
    as dpo does (docs/diagnostics.md). Takes another forward and backward pass; not with FSDP or
    ZeRO-3, nor with objectives that learn from whole distributions."""
    shuffle: bool = True
    """Draw the groups of an epoch in random order; false keeps the order of the data."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better `metric_for_best_model` (eval_loss)."""
    early_stopping_threshold: float = Field(default=0.0, ge=0)
    """What counts as better, in units of that metric."""
    max_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Save and leave with exit code 75 after the step in which the command has run so long. Leave
    time to save before the limit of a scheduler."""
    max_skipped_steps: int = Field(default=0, ge=0)
    """How many steps of the whole run may be left out because their loss or gradient is not finite;
    one more stops it. Weights, optimiser and learning-rate schedule stay as they were before such a
    step, and non_finite-step-N.json in the run's folder says what was in it."""

    @field_validator("groups_per_step", mode="before")
    @classmethod
    def _at_least_one_group(cls, value: Any) -> Any:
        counts = list(value.values()) if isinstance(value, dict) else [value]
        if not all(type(count) is int and count >= 1 for count in counts):
            raise ValueError("should be greater than or equal to 1, and a whole number")
        return value

    @model_validator(mode="after")
    def _other_keys_are_training_arguments(self) -> "TrainingSection":
        checked = {key: _checked(key, value) for key, value in (self.model_extra or {}).items()}
        (self.model_extra or {}).update(checked)
        if self.early_stopping_threshold and not self.early_stopping_patience:
            raise UserError(
                "training.early_stopping_threshold has no effect without "
                "training.early_stopping_patience. Set both or neither."
            )
        if self.max_minutes is not None and self.arguments.get("save_only_model"):
            raise UserError(
                "training.max_minutes stops a run that training.save_only_model keeps from going "
                "on. Remove one of them."
            )
        return self

    def groups_of(self, role: str) -> int:
        """Groups per step of a role's stream."""
        given = self.groups_per_step
        return given if isinstance(given, int) else given[role]

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that belong to TrainingArguments."""
        return dict(self.model_extra or {})


def _checked(key: str, value: Any) -> Any:
    """The value in the type that TrainingArguments declares for the key."""
    from transformers import TrainingArguments

    if key in REFUSED:
        raise UserError(f"training.{key}: {REFUSED[key]}.")
    if value is False and key.endswith("_strategy"):
        # YAML reads an unquoted `no` as false.
        value = "no"
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"training.{key} should be a finite number, got {value}.")
    hints = typing.get_type_hints(TrainingArguments)
    names = {name for name in hints if not name.startswith("_")} - set(REFUSED)
    if key not in names:
        if key in _OLD_NAMES:
            raise UserError(f"training.{key}: {_OLD_NAMES[key]}.")
        known = names | set(TrainingSection.model_fields)
        near = did_you_mean(key, known).split(" Known:")[0]
        if near.startswith("Known"):
            near = "See transformers.TrainingArguments."
        raise UserError(f"training.{key}: unknown key. {near}")
    if isinstance(value, bool) and bool not in (*typing.get_args(hints[key]), hints[key]):
        raise UserError(f"training.{key} should be {hints[key]}, got {value}.")
    try:
        value = TypeAdapter(hints[key]).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ")
        raise UserError(f"training.{key} {message}, got {value!r}.") from None
    _check_range(key, value)
    return value


def _check_range(key: str, value: Any) -> None:
    """Refuse numbers that transformers takes, and then fails on or trains nothing with."""
    if not isinstance(value, int | float):
        return
    should_be = ""
    if key in _NOT_NEGATIVE and value < 0:
        should_be = "0 or more"
    elif key in _POSITIVE and value <= 0:
        should_be = "greater than 0"
    elif key == "max_steps" and value != -1 and value <= 0:
        should_be = "greater than 0, or -1 to train for num_train_epochs"
    elif key == "seed" and value >= 2**32:
        should_be = "less than 2**32"
    if should_be:
        raise UserError(f"training.{key} should be {should_be}, got {value}.")
