"""Models of the hub in small: the same architecture with random weights, and a tokenizer of bytes
with the marks, the template and the ends of the real one."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.scripts import script

real_sizes = script("make_recipe_plans").real_sizes

_ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# An answer ends with the token, all other turns with a line.
_TULU = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# DeepSeek's marks have wide bars.
_R1_BEGINNING, R1_END, R1_USER, R1_ASSISTANT = (
    f"<\uff5c{mark}\uff5c>"
    for mark in ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant")
)


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """What a tokenizer has beside its vocabulary."""

    eos: str
    bos: str | None = None
    """None where it puts nothing before a text."""
    pad: str | None = None
    others: tuple[str, ...] = ()
    """That its template writes."""
    template: str | None = None
    """The text, or the name of one that trl brings."""


_LLAMA_3 = ("<|start_header_id|>", "<|end_header_id|>")
_CHATML = ("<|im_start|>",)
_QWEN_2_5 = _Marks(eos="<|im_end|>", pad="<|endoftext|>", others=_CHATML, template="qwen2_5")
_QWEN_3 = _Marks(
    eos="<|im_end|>",
    pad="<|endoftext|>",
    others=(*_CHATML, "<think>", "</think>"),
    template="qwen3",
)
# Where Tulu begins, OLMo 2 writes the token that also ends an answer.
_OLMO_2 = _Marks(
    eos="<|endoftext|>", pad="<|pad|>", template=_TULU.replace("bos_token", "eos_token")
)
_ZEPHYR_MARKS = _Marks(eos="</s>", bos="<s>", pad="</s>", template=_ZEPHYR)


def _llama_3(eos: str, template: str | None) -> _Marks:
    # The tokens that end a text and a turn are both there, whichever is named.
    others = (*_LLAMA_3, "<|end_of_text|>", "<|eot_id|>")
    return _Marks(eos=eos, bos="<|begin_of_text|>", others=others, template=template)


def _gemma(template: str) -> _Marks:
    turns = ("<start_of_turn>", "<end_of_turn>")
    return _Marks(eos="<eos>", bos="<bos>", pad="<pad>", others=turns, template=template)


_LLAMA_3_1 = _llama_3("<|eot_id|>", "llama3_1")
_LLAMA_3_2 = _llama_3("<|eot_id|>", "llama3_2")
_MARKS = {
    "alignment-handbook/zephyr-7b-sft-full": _ZEPHYR_MARKS,
    "allenai/Llama-3.1-Tulu-3-8B-SFT": _Marks(
        eos="<|end_of_text|>", bos="<|begin_of_text|>", template=_TULU
    ),
    "allenai/OLMo-2-0425-1B-SFT": _OLMO_2,
    "allenai/OLMo-2-1124-7B-SFT": _OLMO_2,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _Marks(
        eos=R1_END,
        bos=_R1_BEGINNING,
        pad=R1_END,
        others=(R1_USER, R1_ASSISTANT, "<think>", "</think>"),
        template="deepseek_r1_distill",
    ),
    "EleutherAI/pythia-2.8b": _Marks(eos="<|endoftext|>"),
    "google/gemma-2-9b-it": _gemma("gemma"),
    "google/gemma-2b-it": _gemma("gemma"),
    "google/gemma-3-1b-it": _gemma("gemma3"),
    "HuggingFaceH4/mistral-7b-sft-beta": _ZEPHYR_MARKS,
    "huggyllama/llama-7b": _Marks(eos="</s>", bos="<s>"),
    "meta-llama/Llama-2-7b-chat-hf": _Marks(eos="</s>", bos="<s>", template=_MISTRAL),
    "meta-llama/Llama-3.1-8B": _llama_3("<|end_of_text|>", None),
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_1,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_3_2,
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama_3("<|end_of_text|>", "llama3"),
    "mistralai/Mistral-7B-Instruct-v0.2": _Marks(eos="</s>", bos="<s>", template=_MISTRAL),
    "mistralai/Mistral-7B-v0.1": _Marks(eos="</s>", bos="<s>"),
    "open-unlearning/tofu_Llama-3.1-8B-Instruct_full": _LLAMA_3_1,
    "open-unlearning/tofu_Llama-3.2-1B-Instruct_full": _LLAMA_3_2,
    "princeton-nlp/Llama-3-Base-8B-SFT": _llama_3("<|end_of_text|>", "llama3"),
    "Qwen/Qwen2.5-0.5B": _Marks(
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        others=(*_CHATML, "<|im_end|>"),
        template="qwen2_5",
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN_2_5,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_2_5,
    "Qwen/Qwen3-0.6B": _QWEN_3,
    "Qwen/Qwen3-4B": _QWEN_3,
    "Qwen/Qwen3-4B-Instruct-2507": _Marks(
        eos="<|im_end|>", pad="<|endoftext|>", others=_CHATML, template="qwen3_instruct_2507"
    ),
    "Qwen/Qwen3-8B": _QWEN_3,
}


def save_hub_model(name: str, folder: Path) -> Path:
    """A folder with a model of the hub in small.

    Raises:
        LookupError: for a model whose sizes or marks are not written down.
    """
    tokenizer = hub_tokenizer(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(**(_in_small(real_sizes(name)) | _ids(tokenizer)))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hub_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One token per byte, and the marks of the real tokenizer.

    Raises:
        LookupError: for a model whose marks are not written down.
    """
    if name not in _MARKS:
        raise LookupError(f"{name} is not in {__name__}: add the marks of its tokenizer there.")
    marks = _MARKS[name]
    given = (marks.bos, marks.eos, marks.pad, *marks.others)
    names = [*dict.fromkeys(mark for mark in given if mark)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*names, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if marks.bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{marks.bos} $A", special_tokens=[(marks.bos, vocabulary[marks.bos])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=marks.pad,
        bos_token=marks.bos,
        eos_token=marks.eos,
        additional_special_tokens=[*marks.others],
    )
    tokenizer.chat_template = _template(marks.template)
    return tokenizer


def _template(name: str | None) -> str | None:
    if name is None or "{" in name:
        return name
    file = resources.files("trl").joinpath("chat_templates", f"{name}.jinja")
    return file.read_text(encoding="utf-8")


def _in_small(sizes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with two layers, a narrow body and narrow windows; all else as it is."""
    # Blocks of 64 weights share a scale in 4 bits, so that nothing narrower is quantised as in
    # life. Heads are as wide as the body allows, or wider where the real ones are.
    heads, hidden = 4, 64
    has_wide_heads = "head_dim" in sizes and (
        sizes["head_dim"] * sizes["num_attention_heads"] != sizes["hidden_size"]
    )
    small = sizes | {
        "hidden_size": hidden,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
    }
    if "num_key_value_heads" in sizes:
        share = sizes["num_key_value_heads"] / sizes["num_attention_heads"]
        small["num_key_value_heads"] = max(1, round(heads * share))
    if "head_dim" in sizes:
        small["head_dim"] = 32 if has_wide_heads else hidden // heads
    if sizes.get("sliding_window"):
        small["sliding_window"] = 32
    if sizes["model_type"] == "gemma3_text":
        # Real ones have a full layer in six.
        small["layer_types"] = ["sliding_attention", "full_attention"]
    return small


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
