"""Token ids with which a model goes on, in batches with left padding and a key-value cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.tokenize import TEMPLATE_ERRORS, Encoder, template_problem
from prefopt.errors import UserError
from prefopt.evaluation.generate.base import messages_of, short
from prefopt.evaluation.generate.sampling import RowSampler, uniforms_of
from prefopt.evaluation.types import Prompt
from prefopt.models.head import base_of

Ids = list[int]


def end_ids(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Tokens that end an answer: what it was trained to end with, and what the model says."""
    own = base_of(model).generation_config.eos_token_id
    also = own if isinstance(own, list) else [own]
    return [each for each in dict.fromkeys([tokenizer.eos_token_id, *also]) if each is not None]


def prompt_ids(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, plain: bool = False
) -> list[tuple[str, Ids]]:
    """Each prompt's id, and its first turn as token ids with what is before it.

    Args:
        prompts: what is asked.
        tokenizer: that of the model; its chat template is used if it has one.
        plain: leave the chat template out.

    Raises:
        UserError: if a prompt is a dialogue without a template, or the template refuses one.
    """
    encoder = Encoder(tokenizer)
    if plain or not encoder.has_chat_template:
        for prompt in prompts:
            if prompt.context:
                raise UserError(
                    f"{short(prompt)} comes after other messages, which need a chat template. "
                    "Set model.chat_template, such as chatml, or ask plain prompts."
                )
        texts = [prompt.turns[0] for prompt in prompts]
        ids = [[*encoder.prefix_ids, *each] for each in encoder.encode(texts)]
    else:
        ids = encoder.encode([_rendered(prompt, encoder) for prompt in prompts])
    return [(prompt.prompt_id, each) for prompt, each in zip(prompts, ids, strict=True)]


def _rendered(prompt: Prompt, encoder: Encoder) -> str:
    messages: list[Any] = list(messages_of(prompt, [], None))
    try:
        [text] = encoder.render([messages], add_generation_prompt=True)
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"{short(prompt)}: the chat template refuses it: {template_problem(error)}. "
            "Change the prompt, or model.chat_template."
        ) from error
    return text


def check_room(model: PreTrainedModel | PeftModel, longest: int, option: str) -> None:
    """Refuse prompts with answers that the model cannot hold.

    Args:
        model: whose positions are counted.
        longest: tokens of the longest prompt with its answer.
        option: what the user can lower.

    Raises:
        UserError: with both numbers.
    """
    most = getattr(base_of(model).config.get_text_config(), "max_position_embeddings", None)
    if most is not None and longest > most:
        raise UserError(
            f"{option}: the longest prompt with its answer comes to {longest:,} tokens, and the "
            f"model reads {most:,}. Lower it, or leave long prompts out."
        )


def continuations(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    seeds: Sequence[int] | None,
) -> list[Ids]:
    """One continuation of each prompt, generated together.

    Nothing that the model's own generation config says has a part in it: sampling is from the whole
    distribution at temperature 1.

    Args:
        model: left in the mode and on the device where it is; an adapter that is on, counts.
        prompts: token ids, none empty.
        ends: tokens that end a continuation.
        max_new_tokens: the longest that one may be.
        seeds: one per prompt, so that its draws do not depend on its neighbours; None takes the
            most likely token each time.

    Returns:
        ids without the prompt; the last one is of `ends` unless the continuation was cut.
    """
    inner: Any = base_of(model)
    width = max(map(len, prompts))
    padded = [[*([ends[0]] * (width - len(ids))), *ids] for ids in prompts]
    mask = [[*([0] * (width - len(ids))), *([1] * len(ids))] for ids in prompts]
    processors = []
    if seeds is not None:
        uniforms = uniforms_of(seeds, max_new_tokens).to(inner.device)
        processors = [RowSampler(uniforms, [1.0] * len(prompts), width=width, top_k=0, top_p=1.0)]
    was_training = model.training
    model.eval()
    with torch.no_grad(), _without_own_config(inner):
        output = inner.generate(
            input_ids=torch.tensor(padded, device=inner.device),
            attention_mask=torch.tensor(mask, device=inner.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(ends),
                pad_token_id=ends[0],
            ),
            logits_processor=processors,
        )
    model.train(was_training)
    return [_up_to_end(row, ends) for row in output[:, width:].tolist()]


def _up_to_end(ids: Ids, ends: Sequence[int]) -> Ids:
    for position, each in enumerate(ids):
        if each in ends:
            return ids[: position + 1]
    return ids


@contextmanager
def _without_own_config(model: Any) -> Iterator[None]:
    """What a config leaves unsaid, generation fills from the model's own."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
