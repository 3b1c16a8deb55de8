"""Attention over flat rows inside any model that takes its attention from transformers' registry.

A model is switched to a registered function, which no code of the model knows of. Called with
`segments=` it attends over a flat row; called without, as in generation, it hands on to the
implementation that the model had before, with that one's masks.
"""

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefopt.errors import UserError
from prefopt.ops.cascade import cascade_on_cpu
from prefopt.ops.plain_attention import plain_attention
from prefopt.ops.segments import Segments
from prefopt.ops.varlen import varlen_on_cuda

Kernel = Callable[..., Tensor]

# transformers looks for the names of its own kernels inside such a name.
_NAMES = {"sdpa": "prefopt_row", "eager": "prefopt_row_or_plain"}

# What layers hand on and attention over a flat row has no use for.
_WITHOUT_EFFECT = {
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
_WAY_OUT = "Set model.layout: padded, and please report it."


def head_size(config: PreTrainedConfig) -> int:
    """Of a model's queries and keys, as its configuration says or implies it."""
    config = config.get_text_config()
    size: int = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return size


def install_attention(model: PreTrainedModel) -> None:
    """Teach a model's attention to take `segments=`; without it, it behaves as before."""
    before = model.config.get_text_config()._attn_implementation
    if before in _NAMES.values():
        # Another model of the same configuration was switched.
        return
    model.set_attn_implementation(_NAMES[before])
    assert model.config.get_text_config()._attn_implementation == _NAMES[before]


def placeholder_mask(input_ids: Tensor) -> Float[Tensor, "1 1 1 1"]:
    """What to pass as attention mask beside segments, so that no mask of the row is made."""
    # transformers hands on any mask of four axes as it is.
    return torch.zeros(1, 1, 1, 1, device=input_ids.device)


def _attend(
    module: nn.Module,
    query: Float[Tensor, "B A T D"],
    key: Float[Tensor, "B C S D"],
    value: Float[Tensor, "B C S E"],
    attention_mask: Tensor | None,
    *,
    implementation: str,
    segments: Segments | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float | int = 0.0,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention in the form of transformers' registry."""
    is_placeholder = attention_mask is not None and attention_mask.shape == (1, 1, 1, 1)
    if segments is None:
        if is_placeholder and query.shape[2] > 1:
            raise UserError(
                f"model.layout: {type(module).__name__} is not told where the row's prompts and "
                f"responses lie. {_WAY_OUT}"
            )
        given = {"sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        others |= {name: value for name, value in given.items() if value is not None}
        before = _implementation(implementation, module)
        found: tuple[Tensor, Tensor | None] = before(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
        return found
    others["a mask of its own"] = not is_placeholder
    _check(module, sliding_window, dropout, others)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (each.to(dtype) for each in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is not None or s_aux is not None:
        kernel: Kernel = partial(plain_attention, softcap=softcap, sinks=s_aux)
    else:
        kernel = kernel_for(query, value)
    out = kernel(query, key, value, segments, scale=scale, window=sliding_window)
    return out.transpose(1, 2), None


def kernel_for(query: Tensor, value: Tensor) -> Kernel:
    """The fastest attention over flat rows for such tensors, among those that compute it right."""
    size = query.shape[-1]
    if value.shape[-1] == size:
        device, dtype = query.device, query.dtype
        if device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16):
            return cascade_on_cpu
        fits = dtype in (torch.bfloat16, torch.float16) and size % 8 == 0 and size <= 256
        if device.type == "cuda" and fits and why_not_varlen(device, size) is None:
            return varlen_on_cuda
    return plain_attention


@lru_cache
def why_not_varlen(device: torch.device, size: int) -> str | None:
    """What is wrong with the flash kernels on a device; None if they agree with plain attention.

    They are called by private names of torch, so they are tried on a small row with heads of this
    size. To be asked once before training: inside a forward pass, hooks of that pass would see what
    is tried.
    """
    if device.type != "cuda":
        return f"they are for CUDA, not for {device.type}"
    with torch.autocast(device.type, enabled=False):
        return _try_varlen(device, size)


@torch.enable_grad()
def _try_varlen(device: torch.device, size: int) -> str | None:
    segments = Segments(prompt_lengths=(33, 7), response_lengths=((5, 40), (130,)))
    generator = torch.Generator().manual_seed(0)

    def drawn(num_heads: int) -> Tensor:
        shape = (1, segments.num_tokens, num_heads, size)
        drawn = torch.randn(shape, generator=generator).to(device, torch.bfloat16)
        return drawn.transpose(1, 2).requires_grad_()

    tensors = drawn(4), drawn(2), drawn(2)
    for window in (None, 9):
        results = []
        for kernel in (varlen_on_cuda, plain_attention):
            try:
                out = kernel(*tensors, segments, scale=size**-0.5, window=window)
                results.append((out, *torch.autograd.grad(out.float().square().sum(), tensors)))
            except (RuntimeError, AttributeError, TypeError) as error:
                return f"{kernel.__name__} fails: {str(error).splitlines()[0]}"
        for ours, plain in zip(*results, strict=True):
            ours, plain = ours.detach().float(), plain.detach().float()
            deviation = ((ours - plain).norm() / plain.norm()).item()
            # bfloat16 has 8 bits, and the sums of a row a few more roundings.
            if not deviation < 0.02:
                return f"results differ by {deviation:.2g} relative"
    return None


def _check(
    module: nn.Module, sliding_window: int | None, dropout: float | int, others: dict[str, Any]
) -> None:
    """Refuse what would silently be left out of the attention."""
    unknown = [
        name
        for name, value in others.items()
        if value is not None and value is not False and name not in _WITHOUT_EFFECT
    ]
    kind = type(module).__name__
    if unknown or dropout:
        what = ", ".join(unknown) or "dropout"
        raise UserError(f"model.layout: {kind} asks for {what}, unknown to flat rows. {_WAY_OUT}")
    layer_types = getattr(getattr(module, "config", None), "layer_types", None)
    layer = getattr(module, "layer_idx", None)
    if layer_types is not None and layer is not None:
        is_windowed = layer_types[layer] == "sliding_attention"
        if is_windowed != (sliding_window is not None):
            raise UserError(
                f"model.layout: {kind} of layer {layer} does not say how wide its window is. "
                f"{_WAY_OUT}"
            )


def _implementation(name: str, module: nn.Module) -> Callable[..., Any]:
    """What computes the attention of anything but flat rows."""
    if name != "eager":
        found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
        return found
    # Each architecture has its own, beside the module.
    own: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return own


# A compiled layer stops here: the row's pieces differ in number and length from call to call.
_opaque: Callable[..., Any] = torch.compiler.disable(_attend)

for _before, _name in _NAMES.items():
    AttentionInterface.register(_name, partial(_opaque, implementation=_before))
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS[_before])
