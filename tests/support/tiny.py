"""Tiny models, tokenizers and preference files that tests make for themselves."""

import json
import random
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<a>' + message['content'] + eos_token }}"
    "{% else %}{{ '<u>' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def character_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character."""
    special = ["<pad>", "<eos>", "<unk>", "<u>", "<a>"]
    vocabulary = {token: i for i, token in enumerate([*special, *string.printable])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<u>", "<a>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(**changes: object) -> LlamaConfig:
    """Two layers of width 32 for the character tokenizer, with weights large enough to matter."""
    settings: dict[str, object] = {
        "vocab_size": len(character_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return LlamaConfig(**{**settings, **changes})


def save_tiny_model(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """A folder with a random model and the character tokenizer, as a user would have one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(**changes))
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def write_inputs(folder: Path, *, num_pairs: int, num_lists: int) -> Path:
    """A tiny model, pairs.jsonl and lists.jsonl in a folder."""
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", num_pairs)
    write_lists(folder / "lists.jsonl", num_lists)
    return folder


def random_text(generator: random.Random, shortest: int, longest: int) -> str:
    """Lower-case letters and inner spaces."""
    length = generator.randint(shortest, longest)
    return "".join(generator.choice(string.ascii_lowercase) for _ in range(length))


def write_pairs(path: Path, num: int, *, seed: int = 0) -> Path:
    """A JSONL file of text pairs with an explicit prompt, in TRL's columns."""
    generator = random.Random(seed)
    rows = [
        {
            "prompt": random_text(generator, 3, 12),
            "chosen": random_text(generator, 2, 12),
            "rejected": random_text(generator, 2, 12),
        }
        for _ in range(num)
    ]
    return write_jsonl(path, rows)


def write_lists(path: Path, num: int, *, num_responses: int = 4, seed: int = 0) -> Path:
    """A JSONL file of prompts with scored responses."""
    generator = random.Random(seed)
    rows = [
        {
            "prompt": random_text(generator, 3, 12),
            "responses": [random_text(generator, 2, 12) for _ in range(num_responses)],
            "scores": [round(generator.random(), 3) for _ in range(num_responses)],
        }
        for _ in range(num)
    ]
    return write_jsonl(path, rows)


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
