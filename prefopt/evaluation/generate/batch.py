"""Prompts as token ids in, new tokens out: one batch with left padding and a key-value cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefopt.data.tokenize import Ids
from prefopt.evaluation.generate.sampling import RowSampler, uniforms_of
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.models.head import base_of


def end_ids(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Tokens that end an answer: what it was trained to end with, and what the model says."""
    own = base_of(model).generation_config.eos_token_id
    also = own if isinstance(own, list) else [own]
    return [each for each in dict.fromkeys([tokenizer.eos_token_id, *also]) if each is not None]


def new_tokens(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    section: GenerationSection,
    *,
    ends: Ids,
    max_new_tokens: int,
    seeds: Sequence[int],
    temperatures: Sequence[float],
) -> list[Ids]:
    """What the model says after each prompt.

    Nothing that the checkpoint's own generation config sets beside has a part in it.

    Args:
        model: left in the mode and on the device where it is.
        tokenizer: that of the model.
        prompts: token ids, none empty.
        section: top_k, top_p and stop are taken from it.
        ends: tokens that end an answer.
        max_new_tokens: for all of them.
        seeds: one per prompt, so that its draws do not depend on its neighbours.
        temperatures: one per prompt; 0 takes the likeliest token each time.

    Returns:
        New tokens, with what transformers puts behind an end.
    """
    # Any: transformers types `generate` for a protocol of its own that no model satisfies.
    generating: Any = model
    width = max(map(len, prompts))
    pad = ends[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    padded = [[*[pad] * (width - len(ids)), *ids] for ids in prompts]
    mask = [[*[0] * (width - len(ids)), *[1] * len(ids)] for ids in prompts]
    processors: list[LogitsProcessor] = []
    if any(temperatures):
        uniforms = uniforms_of(seeds, max_new_tokens).to(model.device)
        sampler = RowSampler(
            uniforms, temperatures, width=width, top_k=section.top_k, top_p=section.top_p
        )
        processors.append(sampler)
    configuration = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=pad,
        stop_strings=list(section.stop) or None,
    )
    with torch.no_grad(), _as_if_fresh(model):
        output = generating.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=configuration,
            logits_processor=processors,
            tokenizer=tokenizer if section.stop else None,
        )
    new: list[Ids] = output[:, width:].tolist()
    return new


@contextmanager
def _as_if_fresh(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """In eval mode and without the checkpoint's generation config, such as a repetition penalty.

    What a config leaves unsaid, `generate` fills from the model's own.
    """
    base = base_of(model)
    was_training, own = model.training, base.generation_config
    base.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        base.generation_config = own
        model.train(was_training)
