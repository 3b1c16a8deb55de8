"""A model as its configuration describes it, without weights: counted, and run without memory.

Tensors of a blueprint have shapes and no content, so a model of any size is drawn up in seconds,
and the code that trains it can be run on them to see what it would take.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.errors import UserError
from prefopt.models.head import base_of, check_head
from prefopt.models.load import add_new_adapter, prepare_for_scoring
from prefopt.models.section import AdapterSection, ModelSection
from prefopt.models.tokenizer import first_line, reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Numbers of weights; tied ones count once."""

    trained: int
    frozen: int
    quantized: int
    """Of the frozen ones, those that are held in 4 bits."""
    body: int
    """That a token is multiplied with, but the output projection; of a mixture of experts, as many
    as a token meets."""
    head: int
    """Of the output projection."""
    adapter: int
    """Trained ones that stand beside frozen ones."""
    attention_width: int
    """layers * heads * head size."""
    largest_layer: int
    largest_layer_trained: int
    """Of that layer, those that are trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """A policy with its log-prob head, whose tensors have no content."""

    model: PreTrainedModel | PeftModel
    fakes: FakeTensorMode
    """What its tensors compute in."""
    counts: Counts


def _read_config(section: ModelSection) -> PreTrainedConfig:
    """The configuration of a model, without a look at its weights.

    Raises:
        UserError: if there is none at the path.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path: no configuration of a model in {section.path}. {reason(error)}"
        ) from error
    return config


def stored_dtype(section: ModelSection) -> torch.dtype:
    """The type that the weights are loaded in; float32 where nothing says another.

    Raises:
        UserError: if there is no configuration that could say.
    """
    if section.dtype != "auto":
        found: torch.dtype = getattr(torch, section.dtype)
        return found
    said: Any = _read_config(section).get_text_config().dtype
    return said if isinstance(said, torch.dtype) else torch.float32


def draw_up(
    section: ModelSection,
    adapter: AdapterSection | None,
    dtype: torch.dtype,
    *,
    is_cast: bool = False,
) -> Blueprint:
    """The model of a recipe with its adapter, with weights of a type.

    Args:
        section: which model.
        adapter: which adapter; None trains the weights themselves.
        dtype: of the weights; those of an adapter are float32 where this is narrower.
        is_cast: whether an adapter's are of that type too, as engines make them.

    Raises:
        UserError: if there is no configuration of a causal language model, or layout or adapter do
            not fit it.
    """
    config = _read_config(section)
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation=section.attn_implementation,
                trust_remote_code=section.trust_remote_code,
            )
        except ValueError as error:
            raise UserError(
                f"model.path: {section.path} is no causal language model. {first_line(error)}"
            ) from error
        prepare_for_scoring(model, section)
        policy = model if adapter is None else _with_adapter(model, section, adapter)
        if is_cast:
            policy.to(dtype)
    counts = _count(policy, is_quantized=section.quantization is not None)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    _pretend_to_be_on_cpu(policy, fakes)
    return Blueprint(model=policy, fakes=fakes, counts=counts)


def _pretend_to_be_on_cpu(model: nn.Module, fakes: FakeTensorMode) -> None:
    """Put tensors that only say that they are on a CPU in the place of those on no device."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        of_module = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, tensor in [named for each in of_module for named in each]:
            if id(tensor) not in made:
                with fakes:
                    fake = torch.empty_like(tensor, device="cpu")
                is_weight = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
            setattr(module, name, made[id(tensor)])


def _with_adapter(
    model: PreTrainedModel, section: ModelSection, adapter: AdapterSection
) -> PeftModel:
    if adapter.path is None:
        found: Any = add_new_adapter(model, adapter, section.revision)
    else:
        try:
            config = PeftConfig.from_pretrained(adapter.path)
            config.inference_mode = False
            found = get_peft_model(model, config)
        except (OSError, ValueError) as error:
            raise UserError(
                f"adapter.path: {adapter.path} does not fit model.path. {first_line(error)}"
            ) from error
    check_head(model)
    policy: PeftModel = found
    return policy


def _count(model: PreTrainedModel | PeftModel, *, is_quantized: bool) -> Counts:
    config = model.config.get_text_config()
    base = base_of(model)
    head = base.get_output_embeddings().weight
    looked_up = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)} | {id(head)}
    body, adapter, quantized = 0, 0, 0
    for weight in model.parameters():
        if id(weight) in looked_up or weight.dim() < 2:
            continue
        if isinstance(model, PeftModel) and weight.requires_grad:
            adapter += weight.numel()
            continue
        # A third axis is that of experts, of which a token meets a few.
        is_expert = weight.dim() == 3
        met = getattr(config, "num_experts_per_tok", weight.shape[0]) if is_expert else 1
        body += weight.numel() * met // (weight.shape[0] if is_expert else 1)
        quantized += weight.numel() if is_quantized and weight.dim() == 2 else 0
    known = [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)]
    layers: list[nn.Module] = [*known] or [base]
    largest = max(layers, key=_num_weights)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    trained = [w.numel() for w in model.parameters() if w.requires_grad]
    return Counts(
        trained=sum(trained),
        frozen=_num_weights(model) - sum(trained),
        quantized=quantized,
        body=body,
        head=head.numel(),
        adapter=adapter,
        attention_width=config.num_hidden_layers * config.num_attention_heads * size,
        largest_layer=_num_weights(largest),
        largest_layer_trained=sum(w.numel() for w in largest.parameters() if w.requires_grad),
    )


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
