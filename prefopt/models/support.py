"""Which models can read a micro-batch as one flat row, and why others cannot."""

import inspect

from torch import nn
from transformers import PreTrainedModel

from prefopt.errors import UserError
from prefopt.models.layout import LayoutName
from prefopt.models.section import ModelSection

_CALL = "attention_interface("
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_KNOWN_KERNELS = {"sdpa", "eager", "prefopt_row", "prefopt_row_or_plain"}


def choose_layout(model: PreTrainedModel, section: ModelSection) -> tuple[LayoutName, str | None]:
    """How the model lays a micro-batch out, and why not in one flat row if it cannot.

    Raises:
        UserError: if the section insists on a flat row and it is not possible.
    """
    if section.layout == "padded":
        return "padded", None
    reason = why_not_flat(model, section)
    if reason is None:
        return "shared" if section.layout == "auto" else section.layout, None
    if section.layout != "auto":
        raise UserError(
            f"model.layout: {section.layout} is not possible, since {reason}. "
            "Set it to auto or padded."
        )
    return "padded", reason


def why_not_flat(model: PreTrainedModel, section: ModelSection) -> str | None:
    """What keeps a model from one flat row, as a clause; None if nothing known does.

    Tokens of different responses must meet in attention only, and attention must be one that
    `prefopt.models.attention` can take over.
    """
    config = model.config.get_text_config()
    kind = type(model).__name__
    if section.dropout:
        return "model.dropout is on and a shared prompt would draw one mask for all its responses"
    if section.attn_implementation is not None:
        return f"model.attn_implementation asks for {section.attn_implementation}"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS)
    if others:
        return f"{kind} has layers of {' and '.join(others)}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in ("longrope", "dynamic"):
        return f"positions of {kind} ({rope}) depend on the longest text of a row"
    mixing = {type(m).__name__ for m in model.modules() if isinstance(m, nn.Conv1d | nn.RNNBase)}
    if mixing:
        return f"{kind} mixes neighbouring tokens in {min(mixing)}"
    try:
        if not model._can_set_attn_implementation() or not _hand_on_arguments(model):
            return f"the attention of {kind} cannot be replaced"
        has_windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if (has_windows or getattr(config, "sliding_window", None)) and not _tell_windows(model):
            return f"{kind} keeps its sliding window to its masks"
    except OSError:
        return f"the source of {kind} is not there to be read"
    if config._attn_implementation not in _KNOWN_KERNELS:
        return f"{kind} runs with {config._attn_implementation} attention"
    return None


def _hand_on_arguments(model: PreTrainedModel) -> bool:
    """Whether attention gets, and hands on, arguments that the modules around it do not name.

    Read off their source, as transformers itself tells whether attention can be replaced.
    """
    calls = set()
    for parent in model.modules():
        for name, child in parent.named_children():
            if "Attention" in type(child).__name__:
                calls.add((type(parent), f"self.{name}("))
                calls.add((type(child), _CALL))
    arguments = [
        given for kind, call in calls if (given := _arguments_of(call, inspect.getsource(kind)))
    ]
    return bool(arguments) and all("**kwargs" in given for given in arguments)


def _tell_windows(model: PreTrainedModel) -> bool:
    """Whether every attention module says how wide its window is."""
    kinds = {type(module) for module in model.modules() if "Attention" in type(module).__name__}
    calls = [given for kind in kinds if (given := _arguments_of(_CALL, inspect.getsource(kind)))]
    return all("sliding_window=" in given for given in calls)


def _arguments_of(call: str, source: str) -> str:
    """What stands between the brackets of a call; empty if it is not there."""
    rest = source.partition(call)[2]
    depth = 1
    for i, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return rest[:i]
    return ""
