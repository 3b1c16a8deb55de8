"""The tiny model of the embedded task: a Llama of 0.3M parameters that reads characters."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from prefopt.demo.task import CONSONANTS, END_OF_PROMPT, VOWELS, gold_score

_SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
}
# Six letters, end-of-sequence, and one more, so that a response that does not stop is seen.
_MAX_NEW_TOKENS = 8


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of the task; plain text, so nothing is added and no template."""
    characters = [*_SPECIAL_TOKENS.values(), END_OF_PROMPT, *sorted(VOWELS + CONSONANTS)]
    vocabulary = {character: index for index, character in enumerate(characters)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL_TOKENS["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **_SPECIAL_TOKENS
    )


def build_model(seed: int) -> LlamaForCausalLM:
    """Random weights for the vocabulary of `build_tokenizer`; the global generator stays as is."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        # Learns to sort in two thirds of the steps that Llama's own 0.02 takes at this width.
        initializer_range=0.06,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_start(folder: Path, seed: int) -> None:
    """Write untrained weights and tokenizer so that transformers' Auto classes load the folder."""
    build_model(seed).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def gold_of_samples(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    sample: bool,
    seed: int = 0,
    batch_size: int = 128,
) -> list[float]:
    """Gold score of one generated response per prompt.

    Args:
        model: left in the mode and on the device where it is.
        tokenizer: that of the model; its padding side is not used.
        prompts: of the task.
        sample: draw at temperature 1; False decodes greedily.
        seed: of the draws, which leave the global generator as it is; without effect on greedy.
        batch_size: prompts generated at once; the draws depend on it.
    """
    was_training = model.training
    model.eval()
    scores: list[float] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            responses = _generate(model, tokenizer, batch, sample=sample)
            scores += [gold_score(*pair) for pair in zip(batch, responses, strict=True)]
    model.train(was_training)
    return scores


def _generate(
    # Any: transformers types `generate` for a protocol of its own that no model satisfies.
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    sample: bool,
) -> list[str]:
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(
        input_ids=encoded["input_ids"].to(model.device),
        attention_mask=encoded["attention_mask"].to(model.device),
        generation_config=GenerationConfig(
            do_sample=sample,
            max_new_tokens=_MAX_NEW_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
    )
    new_tokens = output[:, encoded["input_ids"].shape[1] :]
    responses: list[str] = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return responses
