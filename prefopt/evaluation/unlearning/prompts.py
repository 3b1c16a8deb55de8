"""How a question is put to a model, and the token ids of its answers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from prefopt.data.boundary import split_records
from prefopt.data.tokenize import Encoder
from prefopt.errors import UserError
from prefopt.evaluation.unlearning.data import Item
from prefopt.types import Message, PreferenceRecord, TokenizedRecord

PLAIN = "Question: {question}\nAnswer: {answer}"
_QUESTION, _ANSWER = "{question}", "{answer}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """Writes a question and an answer as the model reads them."""

    text: str | None
    """With {question} and {answer}; None: the tokenizer's chat template."""
    identity: str
    """What tokens depend on, for telling two runs apart."""

    def record(self, item: Item, name: str) -> PreferenceRecord:
        """The question with all of its answers."""
        scores = tuple(0.0 for _ in item.answers)
        if self.text is None:
            prompt: list[Message] = [{"role": "user", "content": item.question}]
            said = tuple([Message(role="assistant", content=each)] for each in item.answers)
            return PreferenceRecord(id=name, prompt=prompt, responses=said, scores=scores)
        before = self.text.removesuffix(_ANSWER)
        # The space before a word is part of its first token.
        spaces = before[len(before.rstrip(" ")) :]
        return PreferenceRecord(
            id=name,
            prompt=before.rstrip(" ").replace(_QUESTION, item.question),
            responses=tuple(spaces + each for each in item.answers),
            scores=scores,
        )


def template_of(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The way to put questions.

    Args:
        name: `chat` for the tokenizer's chat template, `plain` for "Question: ... Answer: ...",
            `auto` for chat where there is a template and plain elsewhere, or a text of one's own
            with {question} in it and {answer} at its end.
        tokenizer: that of the model.

    Raises:
        UserError: if there is no chat template, or the text lacks one of the two places.
    """
    has_chat = bool(tokenizer.chat_template)
    if name == "auto":
        name = "chat" if has_chat else "plain"
    if name == "chat":
        if not has_chat:
            raise UserError("--template: chat, but the tokenizer has no chat template. Say plain.")
        identity = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
        return Template(text=None, identity=f"chat {identity}")
    text = PLAIN if name == "plain" else name
    is_whole = text.count(_QUESTION) == text.count(_ANSWER) == 1 and text.endswith(_ANSWER)
    if not is_whole:
        raise UserError(
            f"--template: '{name}' is none of auto, chat and plain, and no text with {_QUESTION} "
            f"that ends with {_ANSWER}, such as {PLAIN!r}."
        )
    return Template(text=text, identity=text)


def tokenised(
    items: Sequence[Item], names: Sequence[str], template: Template, tokenizer: Encoder
) -> list[TokenizedRecord]:
    """Ids of each question with its answers, in the order of `Item.answers`.

    Each answer ends with the token that ends a turn, which is scored like the others.
    """
    records = [template.record(*each) for each in zip(items, names, strict=True)]
    return [
        TokenizedRecord(
            id=record.id,
            prompt_ids=torch.tensor(split.prompt_ids),
            response_ids=tuple(torch.tensor(ids) for ids in split.response_ids),
            scores=record.scores,
        )
        for record, split in zip(records, split_records(records, tokenizer), strict=True)
    ]
