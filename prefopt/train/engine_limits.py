"""What DeepSpeed and FSDP2 cannot do, or would do as something else without a word."""

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from prefopt.errors import UserError
from prefopt.train.checkpoint import engine_of
from prefopt.train.checks import word

_NAMES = {"zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp": "FSDP2"}
_SHARDS_WEIGHTS = ("zero3", "fsdp")

# These look at a whole matrix or a whole parameter, such as its norm or its rows; ZeRO gives them
# pieces of one long vector.
_NEEDS_WHOLE_PARAMETERS = (
    "adafactor",
    "stable_adamw",
    "galore_",
    "apollo_",
    "lomo",
    "adalomo",
)


def check_engine_limits(
    arguments: TrainingArguments, *, is_quantized: bool, normalises_gradients: bool
) -> None:
    """Refuse what the engine of this launch cannot train as the recipe says.

    Args:
        arguments: what the recipe says of training.
        is_quantized: whether the policy's own weights are held in 4 bits.
        normalises_gradients: whether each rank measures gradients of its own responses.

    Raises:
        UserError: naming the key, the engine, and what goes instead.
    """
    engine = engine_of(arguments)
    if engine == "ddp":
        return
    name = _NAMES[engine]
    if is_quantized and engine in _SHARDS_WEIGHTS:
        raise UserError(
            f"model.quantization: {name} would have to split 4-bit weights, which are no numbers "
            "of their own. Start with --accelerate ddp or zero2, or leave quantization out."
        )
    if normalises_gradients and engine in _SHARDS_WEIGHTS:
        raise UserError(
            f"training.normalise_gradients: {name} would have to gather weights for every group, "
            "and processes have different numbers of them. Start with --accelerate ddp or zero2."
        )
    optim = word(arguments.optim)
    if engine.startswith("zero") and optim.startswith(_NEEDS_WHOLE_PARAMETERS):
        raise UserError(
            f"training.optim: {optim} looks at whole parameters, and {name} gives it pieces: it "
            "would train otherwise than on one process. Choose adamw_torch, or start with "
            "--accelerate ddp."
        )
    if arguments.save_only_model and arguments.load_best_model_at_end:
        raise UserError(
            f"training.load_best_model_at_end does not go with save_only_model under {name}, which "
            "loads whole checkpoints only. Remove one of them."
        )
    checkpoints_itself = parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING")
    if engine == "fsdp" and checkpoints_itself and arguments.activation_checkpointing:
        raise UserError(
            "training.gradient_checkpointing: the launch configuration says "
            "fsdp_activation_checkpointing already. Remove one of them."
        )
