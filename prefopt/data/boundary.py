"""Records to ids: one prompt sequence per record that all its responses continue exactly.

The prompt is tokenised as at inference. Where prompt and response together begin with its ids, the
rest are the response's. Where tokens merge across the boundary, the prompt stays and the response
is tokenised on its own. Where a chat template writes the generation prompt differently once an
answer follows, all responses share the cut after the last common token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from prefopt.data.tokenize import TEMPLATE_ERRORS, Encoder, Ids, template_problem
from prefopt.errors import UserError
from prefopt.types import Message, PreferenceRecord

_ANCHORS = ("", "\n", "a", ".")
"""Texts to tokenise a response after, so that no word start is invented; tried in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRecord:
    """Ids of a record, before anything is cut to length."""

    prompt_ids: Ids
    response_ids: list[Ids]
    num_merges: int
    """Responses whose first token merged with the prompt's last."""
    template_cut: bool
    """Whether the generation prompt was shortened to what all responses share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """What of a record is tokenised."""

    prompt: str
    full: tuple[str, ...]
    """Prompt and response, K times."""


def split_records(records: Sequence[PreferenceRecord], encoder: Encoder) -> list[SplitRecord]:
    """The ids of each record.

    Raises:
        UserError: naming the record, if it has no chat template, the template refuses it, there
            is no boundary to be found, or the text brings a second beginning-of-sequence.
    """
    texts = _texts(records, encoder)
    flat = [text for each in texts for text in (each.prompt, *each.full)]
    ids = iter(encoder.encode(flat))
    result = []
    for record, each in zip(records, texts, strict=True):
        prompt_ids = next(ids)
        full_ids = [next(ids) for _ in each.full]
        result.append(_split(record, each, prompt_ids, full_ids, encoder))
    return result


def _split(
    record: PreferenceRecord, texts: _Texts, prompt_ids: Ids, full_ids: list[Ids], encoder: Encoder
) -> SplitRecord:
    template_cut = not all(full.startswith(texts.prompt) for full in texts.full)
    if template_cut:
        prompt_ids = _common_prompt(record, prompt_ids, full_ids, encoder)
    length = len(prompt_ids)
    num_merges = 0
    responses = []
    for number, full in enumerate(full_ids):
        if full[:length] == prompt_ids:
            response = full[length:]
        else:
            num_merges += 1
            said = texts.full[number][len(texts.prompt) :]
            response = _after(prompt_ids, full, said, record, encoder)
        responses.append(encoder.end(response))
    return SplitRecord(
        prompt_ids=_with_beginning(prompt_ids, record, encoder),
        response_ids=responses,
        num_merges=num_merges,
        template_cut=template_cut,
    )


def _with_beginning(prompt_ids: Ids, record: PreferenceRecord, encoder: Encoder) -> Ids:
    """The prompt as the model reads it, its first token never a scored one."""
    bos = encoder.bos_id
    if isinstance(record.prompt, str):
        prompt_ids = [*encoder.prefix_ids, *prompt_ids]
    if not prompt_ids:
        if bos is None:
            raise UserError(
                f"{record.id}: the prompt is empty and the tokenizer has no beginning-of-sequence "
                "token to stand in for it. Give the record a prompt."
            )
        return [bos]
    if bos is not None and prompt_ids[:2] == [bos, bos]:
        raise UserError(
            f"{record.id}: two beginning-of-sequence tokens: the text brings one and the "
            "tokenizer adds another. Remove it from the text, or use messages."
        )
    return prompt_ids


def _after(
    prompt_ids: Ids, full: Ids, said: str, record: PreferenceRecord, encoder: Encoder
) -> Ids:
    """Ids of a response that give back the text when they follow the prompt's."""
    text = encoder.decode(full)
    for anchor in _ANCHORS:
        anchor_ids, ids = encoder.encode([anchor, anchor + said])
        if ids[: len(anchor_ids)] != anchor_ids:
            continue
        response = ids[len(anchor_ids) :]
        if encoder.decode([*prompt_ids, *response]) == text:
            return response
    raise UserError(
        f"{record.id}: the tokenizer merges the end of the prompt with the start of the response, "
        "and no ids of the response alone give the text back. End the prompt with a line break, "
        "or start the response with a space."
    )


def _common_prompt(
    record: PreferenceRecord, prompt_ids: Ids, full_ids: list[Ids], encoder: Encoder
) -> Ids:
    """The prompt up to the last token that all responses share; the turns must be whole."""
    length = len(prompt_ids)
    for full in full_ids:
        pairs = zip(prompt_ids[:length], full, strict=False)
        length = next((n for n, (a, b) in enumerate(pairs) if a != b), min(length, len(full)))
    [turns] = _render_all([record], [_prompt(record)], encoder, add_generation_prompt=False)
    turn_ids = encoder.encode([turns])[0]
    if prompt_ids[: len(turn_ids)] != turn_ids or length < len(turn_ids):
        raise UserError(
            f"{record.id}: the chat template writes the prompt differently once a response "
            "follows, beyond the generation prompt. Choose another one with model.chat_template."
        )
    return prompt_ids[:length]


def _texts(records: Sequence[PreferenceRecord], encoder: Encoder) -> list[_Texts]:
    """What to tokenise of each record, rendering in bulk where the template is called alike."""
    texts: list[_Texts] = []
    for kind, group in groupby(records, key=_template_call):
        members = list(group)
        if kind is None:
            texts.extend(_plain(record) for record in members)
        elif kind:
            for record in members:
                texts.extend(_rendered([record], encoder))
        else:
            texts.extend(_rendered(members, encoder))
    return texts


def _template_call(record: PreferenceRecord) -> bool | None:
    """None for text; for messages whether the template gets arguments of the record's own."""
    if isinstance(record.prompt, str):
        return None
    return bool(record.tools or record.template_kwargs)


def _plain(record: PreferenceRecord) -> _Texts:
    prompt = str(record.prompt)
    return _Texts(prompt=prompt, full=tuple(prompt + str(said) for said in record.responses))


def _rendered(records: list[PreferenceRecord], encoder: Encoder) -> list[_Texts]:
    if not encoder.has_chat_template:
        raise UserError(
            f"{records[0].id}: holds messages, but the tokenizer has no chat template. "
            "Set model.chat_template to chatml or to a template file."
        )
    prompts = [_prompt(record) for record in records]
    full = [
        prompt + _turns(response)
        for prompt, record in zip(prompts, records, strict=True)
        for response in record.responses
    ]
    owners = [record for record in records for _ in record.responses]
    prompt_texts = _render_all(records, prompts, encoder, add_generation_prompt=True)
    full_texts = iter(_render_all(owners, full, encoder, add_generation_prompt=False))
    return [
        _Texts(prompt=prompt, full=tuple(next(full_texts) for _ in record.responses))
        for prompt, record in zip(prompt_texts, records, strict=True)
    ]


def _render_all(
    owners: list[PreferenceRecord],
    conversations: list[list[Message]],
    encoder: Encoder,
    *,
    add_generation_prompt: bool,
) -> list[str]:
    """All conversations of records that call the template alike."""
    first = owners[0]
    template_kwargs = dict(first.template_kwargs or {})
    try:
        return encoder.render(
            conversations,
            add_generation_prompt=add_generation_prompt,
            tools=first.tools,
            template_kwargs=template_kwargs,
        )
    except TEMPLATE_ERRORS as error:
        if len(conversations) == 1:
            raise UserError(
                f"{first.id}: the chat template refuses the messages: {template_problem(error)}. "
                "Change the record, or model.chat_template."
            ) from error
    # One of them is refused: find it.
    return [
        _render_all([owner], [each], encoder, add_generation_prompt=add_generation_prompt)[0]
        for owner, each in zip(owners, conversations, strict=True)
    ]


def _prompt(record: PreferenceRecord) -> list[Message]:
    return _turns(record.prompt)


def _turns(value: str | list[Message]) -> list[Message]:
    assert not isinstance(value, str), "a record mixes text and messages"
    return value
