"""TRL's keys that have no counterpart: those that stop a conversion, and those that may go.

A key that is on neither table is read by the modules that write the recipe's sections.
"""

from dataclasses import dataclass
from typing import Any

from prefopt.train.section import REFUSED


@dataclass(frozen=True, slots=True)
class Change:
    """A key that changes what is learned and that no recipe can say."""

    neutral: tuple[Any, ...]
    """Values at which TRL does what a recipe does."""
    why: str
    """What is missing, and what comes near where there is such a thing."""
    beside: str | None = None
    """A key without which TRL does not read this one."""


_TAIL = "no objective weighs what is longer than the other response (LD-DPO)"
_WPO = "no objective weighs pairs by the policy's own probabilities (WPO)"
_NEFT = "no noise is added to embeddings"

CHANGES = {
    "ld_alpha": Change((None, 1.0), _TAIL),
    "f_divergence_type": Change(("reverse_kl",), "only the reverse KL is there"),
    "use_weighting": Change((False,), _WPO),
    "sync_ref_model": Change((False,), "a reference never moves (TR-DPO)"),
    "router_aux_loss_coef": Change((None, 0.0), "no auxiliary loss of experts is added"),
    "truncation_mode": Change(("keep_start",), "a prompt is never cut"),
    "alpha": Change((0.0,), "no objective reshapes rewards (AlphaPO)"),
    "is_encoder_decoder": Change((None, False), "models are causal language models"),
    "fp16": Change((False,), "float16 overflows on summed log-probs; bf16 does not"),
    "neftune_noise_alpha": Change((None, 0.0), _NEFT),
    "load_in_8bit": Change((False,), "frozen weights have 4 bits (load_in_4bit) or their own type"),
    "bnb_4bit_quant_type": Change(("nf4",), "4 bits are nf4 alone", beside="load_in_4bit"),
    "lora_target_parameters": Change((None,), "adapters are put on layers", beside="use_peft"),
    "lora_task_type": Change(("CAUSAL_LM",), "a policy is a language model", beside="use_peft"),
}
"""Keys of TRL that change what is learned."""

OLD_CHANGES = {
    "max_prompt_length": "a prompt is never cut; data.max_length is that of prompt and response",
    "rpo_alpha": "say loss_type: [sigmoid, sft] and loss_weights: [1.0, ALPHA] instead",
    "reference_free": "choose an objective without a reference, such as CPO's loss_type: simpo",
    "force_use_ref_model": "name another reference in the recipe, as reference.path",
}
"""Keys of earlier versions of TRL that change what is learned, and what to do."""

OLD_NAMES = {
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "torch_dtype": "dtype",
    "no_cuda": "use_cpu",
}
"""Keys of earlier versions that mean what another one means now."""

_LAUNCH = "start with prefopt train --accelerate, see docs/launching.md"
_STREAMED = "data is tokenised once and memory-mapped"
_CACHED = "reference.cache: auto keeps the reference's log-probs where that pays"

_READ_ALL_THE_SAME = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    *CHANGES,
)

LEFT_OUT = {
    **{key: why for key, why in REFUSED.items() if key not in _READ_ALL_THE_SAME},
    "padding_free": "model.layout: auto pads nothing where the architecture allows it",
    "pad_to_multiple_of": "model.layout decides what is padded",
    "pad_token": "no padding token is needed",
    "padding_value": "no padding token is needed",
    "label_pad_token_id": "no padding token is needed",
    "precompute_ref_log_probs": _CACHED,
    "precompute_ref_batch_size": _CACHED,
    "activation_offloading": "gradient_checkpointing or --accelerate zero3_offload saves memory",
    "dataset_streaming": _STREAMED,
    "streaming": _STREAMED,
    "ignore_bias_buffers": "it mends DDP for old models, which transformers has mended since",
    "use_bnb_nested_quant": "model.quantization: nf4 always quantizes its constants too",
    "bnb_4bit_quant_storage": "quantized weights lie as bitsandbytes keeps them",
    "generate_during_eval": "prefopt generate and prefopt compare show answers",
    "max_completion_length": "TRL reads it for encoder-decoder models alone",
    "per_device_eval_batch_size": "training.tokens_per_micro_batch holds for evaluation too",
    "env": "set these variables in the shell",
    "accelerate_config": _LAUNCH,
    "config_file": _LAUNCH,
    "num_machines": _LAUNCH,
    "machine_rank": _LAUNCH,
    "main_process_ip": _LAUNCH,
    "main_process_port": _LAUNCH,
    "multi_gpu": _LAUNCH,
    "gpu_ids": _LAUNCH,
    "mixed_precision": _LAUNCH,
}
"""Keys that cost or speed, of the launcher or of what prefopt does itself, and why they may go."""

MODEL_ARGUMENTS = ("dtype", "torch_dtype", "revision", "attn_implementation", "trust_remote_code")
"""Keys of model_init_kwargs that a recipe has."""

MODEL_ARGUMENTS_LEFT_OUT = {
    "device_map": "processes place the model themselves",
    "low_cpu_mem_usage": "weights are read as transformers does by itself",
    "use_cache": "scoring keeps no keys and values",
    "use_kernels": "flat rows have their own attention",
    "cache_dir": "set HF_HOME in the shell",
}
"""Keys of model_init_kwargs that may go, and why."""
