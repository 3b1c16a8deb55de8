"""Training arguments that would change nothing beside the other ones."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.debug_utils import DebugOption

from prefopt.errors import UserError
from prefopt.train.checks import word

_OWN_KEYS = ("adam_beta1", "adam_beta2", "adam_epsilon")
_LOW_RANK = ("galore_", "apollo_")
_READ_THE_MODEL = (*_LOW_RANK, "lomo", "adalomo")
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Condition:
    """What some keys need to do anything."""

    keys: tuple[str, ...]
    is_met: Callable[[TrainingArguments], bool]
    unless: str
    """The words behind "has no effect", with the way out."""


def _recomputes(arguments: TrainingArguments) -> bool:
    """By the name that the installed transformers has for it."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    known = [name for name in names if name in TrainingArguments.__dataclass_fields__]
    return bool(getattr(arguments, known[0]))


_CONDITIONS = (
    _Condition(
        keys=("run_name",),
        is_met=lambda arguments: bool(arguments.report_to),
        unless="without a tracker. Set training.report_to",
    ),
    _Condition(
        keys=("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        is_met=lambda arguments: "trackio" in (arguments.report_to or ()),
        unless="without trackio. Set training.report_to: trackio",
    ),
    _Condition(
        keys=("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        is_met=_recomputes,
        unless="without recomputation. Set training.gradient_checkpointing: true",
    ),
    _Condition(
        keys=("fsdp_config",),
        is_met=lambda arguments: bool(arguments.fsdp),
        unless="without training.fsdp. Start with --accelerate fsdp2",
    ),
    _Condition(
        keys=("debug",),
        is_met=lambda arguments: DebugOption.TPU_METRICS_DEBUG not in arguments.debug,
        unless="by tpu_metrics_debug. Set it to underflow_overflow",
    ),
    _Condition(
        keys=("optim_target_modules",),
        is_met=lambda arguments: word(arguments.optim).startswith(_LOW_RANK),
        unless="except on galore and apollo. Choose one of them in training.optim",
    ),
    _Condition(
        keys=("warmup_steps",),
        is_met=lambda arguments: word(arguments.lr_scheduler_type) not in _WITHOUT_WARMUP,
        unless="on a schedule without warm-up. Set training.lr_scheduler_type, such as to "
        "constant_with_warmup",
    ),
)


def check_effects(arguments: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse what the recipe says to no effect.

    Args:
        arguments: as built, with an optimiser that there is.
        given: what the recipe says of them.

    Raises:
        UserError: for the first key that changes nothing.
    """
    for condition in _CONDITIONS:
        said = [key for key in condition.keys if given.get(key)]
        if said and not condition.is_met(arguments):
            raise UserError(
                f"training.{said[0]} has no effect {condition.unless}, or remove the key."
            )
    _check_optimizer(arguments, given)


def _check_optimizer(arguments: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse parameters that belong to another optimiser than the chosen one."""
    name = word(arguments.optim)
    if name.startswith(_READ_THE_MODEL):
        return
    chosen = _optimizer(arguments)
    for key in _OWN_KEYS:
        if key in given and chosen == _optimizer(arguments, **{key: given[key] / 2 or 0.1}):
            raise UserError(
                f"training.{key} has no effect on training.optim: {name}. Remove the key."
            )
    for part, others in _parts(arguments.optim_args or ""):
        if chosen == _optimizer(arguments, optim_args=others):
            raise UserError(
                f"training.optim_args: {part!r} has no effect on training.optim: {name}. "
                "Remove it; adam_beta1, adam_beta2, adam_epsilon and weight_decay are keys of "
                "their own."
            )


def _optimizer(arguments: TrainingArguments, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """The optimiser's class and parameters, with some arguments changed."""
    changed = copy.copy(arguments)
    for key, value in changes.items():
        setattr(changed, key, value)
    found: tuple[Any, dict[str, Any]] = Trainer.get_optimizer_cls_and_kwargs(changed)
    return found


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """Every `key=value` of a text, and the text without it."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for i, part in enumerate(parts):
        yield part, ",".join(parts[:i] + parts[i + 1 :])
