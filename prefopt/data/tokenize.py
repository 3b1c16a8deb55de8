"""A tokenizer as data preparation needs it: rendering, ids, ends of sequences, a fingerprint.

The only module of prefopt.data that knows transformers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from prefopt.data.identity import digest
from prefopt.errors import UserError
from prefopt.types import Message

Tokenizer = PreTrainedTokenizerBase
"""Any tokenizer of transformers; fast ones are much faster."""

Ids = list[int]


class Encoder:
    """Text and messages to token ids, with what the tokenizer itself would add kept apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer.

        Raises:
            UserError: if it has no end-of-sequence token.
        """
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, so no response could end. "
                "Set model.eos_token, or choose a tokenizer that has one."
            )
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self.eos_id = int(tokenizer.eos_token_id)
        self.bos_id: int | None = tokenizer.bos_token_id
        unknown = tokenizer.unk_token_id
        self.unknown_id: int | None = None if unknown == self.eos_id else unknown
        self.prefix_ids = self._added_in_front()
        self.end_ids = self._ids_that_end()
        self._is_blank: dict[int, bool] = {}

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self.tokenizer.chat_template)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without the special tokens that the tokenizer would add."""
        if not texts:
            return []
        if self._backend is not None:
            # The same ids as by calling the tokenizer, which leaves such settings behind.
            self._backend.no_truncation()
            self._backend.no_padding()
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[Ids] = encoded["input_ids"]
        return ids

    def decode(self, ids: Ids) -> str:
        """The text of ids, special tokens included."""
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def render(
        self,
        conversations: Sequence[list[Message]],
        *,
        add_generation_prompt: bool,
        tools: list[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Each conversation as the chat template writes it.

        Raises:
            jinja2.TemplateError: if the template refuses one.
        """
        rendered = self.tokenizer.apply_chat_template(
            list(conversations),
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **(template_kwargs or {}),
        )
        assert isinstance(rendered, list)
        return [str(text) for text in rendered]

    def end(self, ids: Ids) -> Ids:
        """A response that ends once: blank tokens behind its end gone, EOS added if it has none."""
        last = len(ids)
        while last and self._blank(ids[last - 1]):
            last -= 1
        if not last or ids[last - 1] not in self.end_ids:
            return [*ids, self.eos_id]
        while last > 1 and ids[last - 1] == ids[last - 2] == self.eos_id:
            last -= 1
        return ids[:last]

    def fingerprint(self) -> str:
        """Hash of everything that decides which ids a text gets."""
        tokenizer = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            content: object = sorted(tokenizer.get_vocab().items())
        else:
            content = json.loads(backend.to_str())
            assert isinstance(content, dict)
            # Calls leave their padding and truncation behind; neither touches our ids.
            content = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
        added = {str(k): repr(v) for k, v in tokenizer.added_tokens_decoder.items()}
        identity = [
            type(tokenizer).__name__,
            content,
            added,
            tokenizer.special_tokens_map,
            tokenizer.chat_template,
            self.prefix_ids,
        ]
        return digest(json.dumps(identity, sort_keys=True, default=str))

    def _added_in_front(self) -> Ids:
        """Ids that the tokenizer puts before a text; what it puts behind is never wanted."""
        probe = "a"
        bare = self.encode([probe])[0]
        full: Ids = self.tokenizer(probe)["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        raise UserError(
            "the tokenizer gives other ids with special tokens than without, so prompt and "
            "response cannot be told apart. Choose another tokenizer."
        )

    def _ids_that_end(self) -> frozenset[int]:
        """Special tokens that can end a turn: neither padding, beginning nor unknown."""
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder
        special = {token_id for token_id, token in added.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        special -= {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
        return frozenset(special | {self.eos_id})

    def _blank(self, token_id: int) -> bool:
        if token_id not in self._is_blank:
            blank = token_id not in self.end_ids and not self.decode([token_id]).strip()
            self._is_blank[token_id] = blank
        return self._is_blank[token_id]


def template_problem(error: Exception) -> str:
    """What a template says when it refuses a conversation."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError)
"""What rendering raises for a conversation that the template cannot take."""
