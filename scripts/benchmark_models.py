"""Random models of known shapes, and the work that they must cost."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from benchmark_workloads import MAX_LENGTH, SPECIAL, Group
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from prefopt.train.work import Tokens, Work

_QWEN3 = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
_LLAMA = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256}
_SHAPES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], tuple[int, int, int, int]]] = {
    "7M": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 64}, (256, 768, 6, 4)),
    "0.6B": (Qwen3Config, _QWEN3, (1024, 3072, 28, 16)),
    "1B": (LlamaConfig, _LLAMA | {"head_dim": 64}, (2048, 8192, 16, 32)),
    "3B": (LlamaConfig, _LLAMA, (3072, 8192, 28, 24)),
    "8B-lora": (LlamaConfig, _LLAMA | {"tie_word_embeddings": False}, (4096, 14336, 32, 32)),
    "tiny": (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 16}, (32, 64, 2, 2)),
    "tiny-lora": (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 16}, (32, 64, 2, 2)),
}
"""Configuration class, what differs from `model_config`, and hidden size, width of the MLP, layers
and heads. Of those with -lora an adapter is trained; the tiny ones are for trying out."""
SIZES = tuple(_SHAPES)


def model_config(size: str) -> PreTrainedConfig:
    """The shape of a model by its size; weights are random."""
    kind, details, (hidden, intermediate, layers, heads) = _SHAPES[size]
    settings: dict[str, Any] = {
        "vocab_size": 8192,
        "tie_word_embeddings": True,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2 * MAX_LENGTH,
        # Wide enough that log-probs depend on what a token may see.
        "initializer_range": 0.8 / math.sqrt(hidden),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return kind(**{**settings, **details})


def save_model(size: str, folder: Path, dtype: torch.dtype) -> Path:
    """A folder with a random model of the size and a tokenizer of one word per token."""
    config = model_config(size)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), config.vocab_size))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return folder


def linear_shapes(size: str) -> list[tuple[int, int]]:
    """(outputs, inputs) of every linear layer, the output projection last."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(size))
    head = model.get_output_embeddings()
    body = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return [tuple(layer.weight.shape) for layer in (*body, head)]


def tokens_of(groups: Iterable[Group]) -> Tokens:
    """Those of all groups together."""
    nothing = Tokens(unique=0.0, scored=0.0, visible=0.0)
    return sum((Tokens.of(group.prompt, group.responses) for group in groups), start=nothing)


def work_of(size: str, lora_rank: int = 0) -> Work:
    """What a model of the size must multiply; with a rank, an adapter on every layer is trained."""
    config = model_config(size)
    *body, head = linear_shapes(size)
    return Work(
        num_body_weights=sum(math.prod(shape) for shape in body),
        num_head_weights=math.prod(head),
        attention_width=config.num_hidden_layers * config.num_attention_heads * config.head_dim,
        num_adapter_weights=lora_rank * sum(sum(shape) for shape in body),
    )
