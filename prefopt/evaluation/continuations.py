"""Token ids with which a model goes on, in batches with left padding and a key-value cache."""

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.tokenize import TEMPLATE_ERRORS, Encoder, Ids, template_problem
from prefopt.errors import UserError
from prefopt.evaluation.generate.base import messages_of, short
from prefopt.evaluation.generate.batch import new_tokens
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Prompt
from prefopt.models.head import base_of


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
    tokenizer: PreTrainedTokenizerBase,
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
        tokenizer: that of the model.
        prompts: token ids, none empty.
        ends: tokens that end a continuation.
        max_new_tokens: the longest that one may be.
        seeds: one per prompt, so that its draws do not depend on its neighbours; None takes the
            most likely token each time.

    Returns:
        ids without the prompt; the last one is of `ends` unless the continuation was cut.
    """
    num = len(prompts)
    sampled = seeds is not None
    new = new_tokens(
        model,
        tokenizer,
        [list(ids) for ids in prompts],
        GenerationSection(temperature=float(sampled)),
        ends=list(ends),
        max_new_tokens=max_new_tokens,
        seeds=[0] * num if seeds is None else seeds,
        temperatures=[float(sampled)] * num,
    )
    return [_up_to_end(row, ends) for row in new]


def _up_to_end(ids: Ids, ends: Sequence[int]) -> Ids:
    for position, each in enumerate(ids):
        if each in ends:
            return ids[: position + 1]
    return ids
