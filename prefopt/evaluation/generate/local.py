"""Answers by transformers on this machine, in batches with left padding and a key-value cache."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.tokenize import TEMPLATE_ERRORS, Encoder, Ids, template_problem
from prefopt.errors import UserError
from prefopt.evaluation.generate.base import Key, Request, messages_of, short
from prefopt.evaluation.generate.batch import end_ids, new_tokens
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Answer
from prefopt.models.head import base_of


@dataclass(kw_only=True, slots=True)
class _Row:
    """An answer as it grows, turn by turn."""

    request: Request
    ids: Ids
    """Of the dialogue up to the next turn."""
    turns: list[str] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)

    @property
    def answer(self) -> Answer:
        """What was said."""
        prompt_id, sample = self.request.key
        return Answer(
            prompt_id=prompt_id,
            turns=tuple(self.turns),
            sample=sample,
            num_tokens=tuple(self.num_tokens),
            finish_reasons=tuple(self.finish_reasons),
        )


class LocalBackend:
    """A model in memory."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        section: GenerationSection,
        *,
        name: str,
        weights: str | None = None,
    ) -> None:
        """Take a model as it is, on the device where it is.

        Args:
            model: a causal language model, with or without an adapter.
            tokenizer: that of the model; without a chat template a prompt is plain text.
            section: how to answer.
            name: path or id, for the file's header.
            weights: hash of the files that it was loaded from, for the header too.
        """
        self.model = name
        self.weights = weights
        self.decode: dict[str, Any] = {
            "backend": "transformers",
            "dtype": str(base_of(model).dtype).removeprefix("torch."),
            **section.model_dump(mode="json"),
        }
        template = tokenizer.chat_template
        self.chat_template = (
            None if not template else hashlib.sha256(str(template).encode()).hexdigest()[:16]
        )
        self.versions = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        }
        self._section = section
        self._model = model
        self._encoder = Encoder(tokenizer)
        self._ends = end_ids(model, tokenizer)
        config = base_of(model).config.get_text_config()
        self._num_positions: int | None = getattr(config, "max_position_embeddings", None)

    def answers(
        self, requests: Sequence[Request], done: Set[Key]
    ) -> Iterator[tuple[Request, Answer]]:
        """Batch after batch; the plan depends on all requests, so that a resumed run has the same.

        Raises:
            UserError: if the model cannot read a prompt.
        """
        for batch in self._batches(requests):
            missing = {row.request.key for row in batch} - done
            if not missing:
                continue
            self._answer(batch)
            for row in batch:
                if row.request.key in missing:
                    yield row.request, row.answer

    def _batches(self, requests: Sequence[Request]) -> list[list[_Row]]:
        """Rows of like length together, the longest first: what does not fit fails at once."""
        rows = [_Row(request=each, ids=self._ids(each, [])) for each in requests]
        for row in rows:
            self._room(row)
        order = sorted(rows, key=lambda row: (len(row.request.prompt.turns), -len(row.ids)))
        size = self._section.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _answer(self, batch: Sequence[_Row]) -> None:
        """All turns of all rows; a later turn sees the model's own answers to the earlier ones."""
        for turn in range(max(len(row.request.prompt.turns) for row in batch)):
            # Rows near the model's limit have less room, and a batch has one limit.
            by_room: dict[int, list[_Row]] = defaultdict(list)
            for row in batch:
                if turn < len(row.request.prompt.turns):
                    row.ids = self._ids(row.request, row.turns)
                    by_room[self._room(row)].append(row)
            for room, rows in by_room.items():
                self._say(rows, turn, room)

    def _say(self, rows: Sequence[_Row], turn: int, room: int) -> None:
        """One turn of each row."""
        seeds = [row.request.seed + turn for row in rows]
        temperatures = [self._section.temperature_of(row.request.prompt) for row in rows]
        outputs = new_tokens(
            self._model,
            self._encoder.tokenizer,
            [row.ids for row in rows],
            self._section,
            ends=self._ends,
            max_new_tokens=room,
            seeds=seeds,
            temperatures=temperatures,
        )
        for row, output in zip(rows, outputs, strict=True):
            text, num_tokens, has_ended = self._read(output)
            row.turns.append(text)
            row.num_tokens.append(num_tokens)
            row.finish_reasons.append("stop" if has_ended else "length")

    def _read(self, ids: Ids) -> tuple[str, int, bool]:
        """Text of an answer, its number of tokens, and whether it ended by itself."""
        end = next((i for i, each in enumerate(ids) if each in self._ends), None)
        said = ids if end is None else ids[:end]
        text = self._decode(said)
        stops = [text.find(stop) for stop in self._section.stop if stop in text]
        if not stops:
            return text, len(said) + (end is not None), end is not None
        num_tokens = next(n for n in range(1, len(said) + 1) if self._has_stop(said[:n]))
        return text[: min(stops)], num_tokens, True

    def _has_stop(self, ids: Ids) -> bool:
        text = self._decode(ids)
        return any(stop in text for stop in self._section.stop)

    def _decode(self, ids: Ids) -> str:
        return str(
            self._encoder.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _ids(self, request: Request, said: Sequence[str]) -> Ids:
        """The dialogue as the model reads it, with the next turn of the user.

        Raises:
            UserError: if it needs a chat template that is not there, or the template refuses it.
        """
        prompt, encoder, system = request.prompt, self._encoder, self._section.system
        if not encoder.has_chat_template:
            if len(prompt.turns) > 1 or prompt.context or system is not None:
                raise UserError(
                    f"{short(prompt)} is a dialogue, but {self.model} has no chat template. "
                    "Set model.chat_template, such as chatml, or ask plain prompts."
                )
            return [*encoder.prefix_ids, *encoder.encode([prompt.turns[0]])[0]]
        messages: list[Any] = list(messages_of(prompt, said, system))
        try:
            [text] = encoder.render([messages], add_generation_prompt=True)
        except TEMPLATE_ERRORS as error:
            raise UserError(
                f"{short(prompt)}: the chat template of {self.model} refuses it: "
                f"{template_problem(error)}. Change the prompt, or model.chat_template."
            ) from error
        return encoder.encode([text])[0]

    def _room(self, row: _Row) -> int:
        """How many tokens may follow.

        Raises:
            UserError: if none.
        """
        most = self._section.max_new_tokens
        if self._num_positions is None:
            return most
        room = self._num_positions - len(row.ids)
        if room < 1:
            way_out = "Lower max_new_tokens" if row.turns else "Shorten or remove it"
            raise UserError(
                f"{short(row.request.prompt)}: turn {len(row.turns) + 1} comes to "
                f"{len(row.ids):,} tokens, and {self.model} reads {self._num_positions:,} with the "
                f"answer. {way_out}, or take a model with a longer context."
            )
        return min(most, room)
