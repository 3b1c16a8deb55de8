"""All of TOFU on one model: scores and greedy answers, each computed once and kept on disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.tokenize import Encoder
from prefopt.errors import UserError
from prefopt.evaluation.continuations import check_room, continuations
from prefopt.evaluation.files import Lines, read_lines
from prefopt.evaluation.generate.batch import end_ids
from prefopt.evaluation.unlearning.data import Item, Tofu
from prefopt.evaluation.unlearning.metrics import exact_memorisation, extraction_strength
from prefopt.evaluation.unlearning.prompts import Template, tokenised
from prefopt.evaluation.unlearning.scores import AnswerScore, score_answers
from prefopt.types import TokenizedRecord

SCHEMA = "prefopt/tofu/1"

Key = tuple[str, int, str]
"""Split, number of the item from 0, and what was found: scores or generation."""
Found = dict[Key, dict[str, Any]]
OnDone = Callable[[str, int, int], None]
"""Told what is being computed, how much of it is done, and of how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a model is asked."""

    template: Template
    max_new_tokens: int = 200
    batch_size: int = 16
    """Answers generated at once."""
    tokens_per_batch: int = 16384
    """Tokens scored at once, padding included."""


class TofuModel:
    """A model to be measured, with what identifies it."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        identity: Mapping[str, Any],
    ) -> None:
        """Takes a model with a log-prob head, on its device.

        Args:
            model: the one that has forgotten, or never known.
            tokenizer: that of the model.
            settings: how it is asked.
            identity: plain values by which the same weights are known again.
        """
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._encoder = Encoder(tokenizer)
        self._identity = dict(identity)

    def measure(
        self,
        data: Tofu,
        path: Path,
        *,
        splits: Sequence[str],
        generates: bool = True,
        on_done: OnDone = lambda what, done, total: None,
    ) -> Found:
        """Scores of all answers of the splits, and greedy answers; what the file has is kept.

        Args:
            data: what to ask.
            path: file of JSON lines, a header and then a line per result.
            splits: names of the sets to ask.
            generates: whether to generate answers too.
            on_done: told of progress.

        Raises:
            UserError: if the file is of another model, other data or settings.
        """
        header = self._header(data)
        records = {split: self._records(split, data.items[split]) for split in splits}
        self._check_room(records)
        # Opened first: what a kill has left of a line is gone before anything is read.
        with Lines(path) as lines:
            found = _read(path, header)
            if path.stat().st_size == 0:
                lines.append(header)
            for split in splits:
                self._score(split, records[split], lines, found, on_done)
                if generates:
                    self._generate(split, records[split], lines, found, on_done)
        return found

    def _header(self, data: Tofu) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "model": self._identity,
            "forget": data.forget,
            "data": dict(data.fingerprints),
            "template": self._settings.template.identity,
            "max_new_tokens": self._settings.max_new_tokens,
        }

    def _records(self, split: str, items: Sequence[Item]) -> list[TokenizedRecord]:
        names = [f"{split}:{number}" for number in range(len(items))]
        return tokenised(items, names, self._settings.template, self._encoder)

    def _check_room(self, records: Mapping[str, Sequence[TokenizedRecord]]) -> None:
        every = [record for some in records.values() for record in some]
        prompt = max(record.num_prompt_tokens for record in every)
        answered = max(each.num_prompt_tokens + max(each.num_response_tokens) for each in every)
        longest = max(prompt + self._settings.max_new_tokens, answered)
        check_room(self._model, longest, "--max-new-tokens")

    def _text(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()

    def _score(
        self,
        split: str,
        records: Sequence[TokenizedRecord],
        lines: Lines,
        found: Found,
        on_done: OnDone,
    ) -> None:
        left = [i for i in range(len(records)) if (split, i, "scores") not in found]
        budget = self._settings.tokens_per_batch
        scored = score_answers(self._model, [records[i] for i in left], budget)
        for done, (position, answers) in enumerate(scored, start=1):
            keep(lines, found, (split, left[position], "scores"), _plain(answers))
            on_done(f"scoring {split}", done, len(left))

    def _generate(
        self,
        split: str,
        records: Sequence[TokenizedRecord],
        lines: Lines,
        found: Found,
        on_done: OnDone,
    ) -> None:
        left = [i for i in range(len(records)) if (split, i, "generation") not in found]
        left.sort(key=lambda i: -records[i].num_prompt_tokens)
        ends = end_ids(self._model, self._tokenizer)
        size = self._settings.batch_size
        for first in range(0, len(left), size):
            batch = left[first : first + size]
            said = continuations(
                self._model,
                self._tokenizer,
                [records[i].prompt_ids.tolist() for i in batch],
                ends=ends,
                max_new_tokens=self._settings.max_new_tokens,
                seeds=None,
            )
            for i, ids in zip(batch, said, strict=True):
                value = {
                    "generation": self._text(ids),
                    "num_tokens": len(ids),
                    "is_cut": ids[-1] not in ends,
                }
                keep(lines, found, (split, i, "generation"), value)
            on_done(f"answering {split}", first + len(batch), len(left))


def keep(lines: Lines, found: Found, key: Key, value: dict[str, Any]) -> None:
    """Write a result, then count it as found."""
    split, number, kind = key
    lines.append({"split": split, "index": number, "kind": kind, **value})
    found[key] = value


def _plain(answers: Sequence[AnswerScore]) -> dict[str, Any]:
    """Of the answer itself what it was memorised by, and every answer's loss."""
    own = answers[0].is_predicted
    return {
        "avg_loss": [each.avg_loss for each in answers],
        "extraction_strength": extraction_strength(own),
        "exact_memorization": exact_memorisation(own),
    }


def _read(path: Path, header: Mapping[str, Any]) -> Found:
    """What an earlier call has left, up to a line that it could not finish."""
    lines: Iterator[dict[str, Any]] = read_lines(path)
    before = next(lines, None)
    if before is None:
        return {}
    differing = [key for key in header if before.get(key) != header[key]]
    if differing:
        key = differing[0]
        raise UserError(
            f"{path} was made with another {key}: {before.get(key)!r}, now {header[key]!r}. "
            "Give another --output, or remove the file to measure anew."
        )
    return {(line.pop("split"), line.pop("index"), line.pop("kind")): line for line in lines}
