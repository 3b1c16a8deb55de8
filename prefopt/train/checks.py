"""Mistakes in training arguments that transformers finds late, in a traceback, or never."""

import os
import re
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate.utils import parse_flag_from_env
from transformers import Trainer, TrainingArguments, get_scheduler

from prefopt.errors import UserError, did_you_mean

LIBRARY_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    OSError,
    RuntimeError,
)
"""What libraries raise for arguments that they cannot work with."""

METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/mean",
    "logps/chosen",
    "logps/rejected",
    "logps/mean",
)
"""What every evaluation may report; objectives add names such as `dpo/loss`."""

_EVALUATED = (
    "eval_steps",
    "eval_delay",
    "metric_for_best_model",
    "load_best_model_at_end",
    "greater_is_better",
)
_WITHOUT_SCHEDULER_KWARGS = ("constant", "constant_with_warmup")
_LONGEST = 400


def as_one_line(error: BaseException) -> str:
    """An error's whole message in one line that ends in a full stop and names keys as recipes do.

    A flag that transformers speaks of, such as `--save_steps`, becomes `training.save_steps`.
    """
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.sub(r"(?<![\w-])--(?=[a-z])", "training.", words)
    words = re.sub(r"\b[A-Z]\w+Strategy\.([A-Z]+)", lambda found: found[1].lower(), words)
    words = textwrap.shorten(words, _LONGEST, placeholder=" ...")
    return words if words.endswith((".", "!", "?")) else f"{words}."


def word(value: Any) -> str:
    """A strategy as recipes write it, be it text or one of transformers' enums."""
    return str(getattr(value, "value", value))


def strategies_of_steps(given: Mapping[str, Any]) -> dict[str, str]:
    """The strategy `steps` for every interval that the recipe gives.

    Raises:
        UserError: if it also asks for another strategy, beside which the interval does nothing.
    """
    found = {}
    for name in ("logging", "eval", "save"):
        steps, strategy = f"{name}_steps", f"{name}_strategy"
        if given.get(steps) is None:
            continue
        said = word(given.get(strategy, "steps"))
        if said != "steps":
            raise UserError(
                f"training.{steps} has no effect beside training.{strategy}: {said}. "
                f"Set {strategy}: steps, or remove {steps}."
            )
        found[strategy] = "steps"
    return found


def check_evaluation(given: Mapping[str, Any], *, has_evaluation: bool) -> None:
    """Refuse what only evaluations can give a meaning to, in a run that has none."""
    if not has_evaluation:
        needy = [key for key in (*_EVALUATED, "eval_on_start") if _is_set(given, key)]
        if word(given.get("save_strategy")) == "best":
            needy.append("save_strategy")
        if needy:
            raise UserError(
                f"training.{needy[0]} needs held-out data. Add data.evaluation, such as "
                "{fraction: 0.05}, or remove the key."
            )
    elif word(given.get("eval_strategy")) == "no":
        needy = [key for key in _EVALUATED if _is_set(given, key)]
        if needy:
            raise UserError(
                f"training.{needy[0]} has no effect beside training.eval_strategy: no. "
                "Remove one of them."
            )
    metric = given.get("metric_for_best_model")
    if metric is not None:
        _check_metric(metric)


def _is_set(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key)
    return value is not None if key == "greater_is_better" else bool(value)


def _check_metric(given: str) -> None:
    name = given.removeprefix("eval_")
    family, slash, _ = name.partition("/")
    if name in METRICS or (slash and family not in ("rewards", "logps")):
        return
    raise UserError(
        f"training.metric_for_best_model: no metric '{given}'. {did_you_mean(name, METRICS)}"
    )


def check_compiled(given: Mapping[str, Any]) -> None:
    """Refuse to compile layers whose weights an engine gathers in hooks around them."""
    names = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
    if given.get("deepspeed") or given.get("fsdp") or any(map(parse_flag_from_env, names)):
        raise UserError(
            "training.torch_compile does not go with DeepSpeed or FSDP here. Set it to false, or "
            "start with recipes/accelerate/ddp.yaml."
        )
    if given.get("gradient_checkpointing") or given.get("activation_checkpointing"):
        raise UserError(
            "training.torch_compile does not go with gradient_checkpointing here. Remove one of "
            "them."
        )


def check_processes(given: Mapping[str, Any]) -> None:
    """Refuse to shard over the one process there is."""
    if given.get("fsdp") and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise UserError(
            "training.fsdp shards over processes, and there is one only. Start with "
            "`accelerate launch` or `torchrun`, or remove the key."
        )
    if given.get("ddp_backend") and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "training.ddp_backend has no effect in a single process. Start with "
            "`accelerate launch` or `torchrun`, or remove the key."
        )


def check_arguments(arguments: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Try what the Trainer does with its arguments only once the model is loaded.

    Args:
        arguments: as built.
        given: what the recipe says of them.

    Raises:
        UserError: for a combination without effect, or one that the Trainer would fail on.
    """
    if arguments.metric_for_best_model is None:
        if word(arguments.save_strategy) == "best":
            raise UserError(
                "training.save_strategy: best needs a metric. Set training.metric_for_best_model, "
                "such as eval_loss."
            )
        if _is_set(given, "greater_is_better"):
            raise UserError(
                "training.greater_is_better has no effect without a metric. Set "
                "training.metric_for_best_model, or remove the key."
            )
    _try_scheduler(arguments, _try_optimizer(arguments))


def _try_optimizer(arguments: TrainingArguments) -> torch.optim.Optimizer:
    """The optimiser over one number where torch has it, otherwise plain SGD."""
    name, text = word(arguments.optim), arguments.optim_args
    if text and any(part.count("=") != 1 for part in text.split(",")):
        raise UserError(
            f"training.optim_args should be like 'rank=64,scale=0.1', got {text!r}. "
            "Write key=value, with commas between."
        )
    dummy = torch.nn.Parameter(torch.zeros(1))
    try:
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if isinstance(cls, type) and cls.__module__.startswith("torch.optim"):
            group = {"params": [dummy], "weight_decay": arguments.weight_decay}
            optimizer: torch.optim.Optimizer = cls([group], **kwargs)
            return optimizer
    except LIBRARY_ERRORS as error:
        # Some optimisers look for their layers in the model, which is not there yet.
        if not re.search("need to pass a `?model", str(error)):
            raise UserError(
                f"training.optim: {name}: {as_one_line(error)} "
                "Mend that, or choose another optimiser, such as adamw_torch."
            ) from error
    return torch.optim.SGD([dummy], lr=arguments.learning_rate)


def _try_scheduler(arguments: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    name, kwargs = word(arguments.lr_scheduler_type), cast(Any, arguments.lr_scheduler_kwargs)
    key = "lr_scheduler_kwargs" if kwargs else "lr_scheduler_type"
    if kwargs and name in _WITHOUT_SCHEDULER_KWARGS:
        raise UserError(
            f"training.lr_scheduler_kwargs has no effect on training.lr_scheduler_type: {name}. "
            "Remove the key."
        )
    num_steps = arguments.max_steps if arguments.max_steps > 0 else 100
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_scheduler(
                arguments.lr_scheduler_type,
                optimizer=optimizer,
                num_warmup_steps=arguments.get_warmup_steps(num_steps),
                num_training_steps=num_steps,
                scheduler_specific_kwargs=kwargs,
            )
    except LIBRARY_ERRORS as error:
        raise UserError(
            f"training.{key}: {name}: {as_one_line(error)} "
            "Give its parameters in training.lr_scheduler_kwargs, and no others."
        ) from error
