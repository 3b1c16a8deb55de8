"""A batch of records to token columns: selection, ids, the length policy, flags for the report."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from pydantic import BaseModel, ConfigDict

from prefopt.data.boundary import SplitRecord, split_records
from prefopt.data.identity import content_hash, prompt_hash
from prefopt.data.records import StoredRecord
from prefopt.data.section import DataSection, Keep, Role, ScoreTransform, TooLong
from prefopt.data.select import best_response, select
from prefopt.data.shard import (
    ALL_IDENTICAL,
    COLUMNS,
    CUT_BEST,
    CUT_OTHER,
    IDENTICAL,
    MERGED,
    TEMPLATE_CUT,
    TIED,
    Columns,
)
from prefopt.data.tokenize import Encoder, Ids
from prefopt.errors import UserError
from prefopt.types import PreferenceRecord


class TokenOptions(BaseModel):
    """The part of the data section that tokens depend on."""

    model_config = ConfigDict(frozen=True)

    scores: ScoreTransform
    keep: Keep
    top_k: int | None
    max_length: int
    too_long: TooLong
    seed: int
    role: Role | None = None
    has_token_weights: bool = False

    @classmethod
    def of(
        cls, section: DataSection, *, role: Role | None = None, has_token_weights: bool = False
    ) -> "TokenOptions":
        """The options of a source; the seed counts only where it is drawn from."""
        options = cls.model_validate(
            {
                **section.model_dump(
                    include=set(cls.model_fields) & set(type(section).model_fields)
                ),
                "role": role,
                "has_token_weights": has_token_weights,
            }
        )
        draws = options.keep == "best_random"
        return options if draws else options.model_copy(update={"seed": 0})


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Tokens of a batch."""

    columns: Columns
    counts: Counter[str]
    """Records, and those dropped or cut by side."""
    longest_prompt: int
    """In tokens, dropped records included."""


@dataclass(kw_only=True, slots=True)
class _Rows:
    """Columns in the making."""

    values: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    scores: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    prompts: list[Ids] = field(default_factory=list)
    responses: list[Ids] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def columns(self) -> Columns:
        """All columns as arrays."""
        arrays = {
            name: np.array(values, dtype=COLUMNS[name]) for name, values in self.values.items()
        }
        arrays["score"] = np.array(self.scores, dtype=COLUMNS["score"])
        arrays["token_weight"] = np.array(self.weights, dtype=COLUMNS["token_weight"])
        for name, sequences in (
            ("prompt_tokens", self.prompts),
            ("response_tokens", self.responses),
        ):
            arrays[name] = np.fromiter(chain.from_iterable(sequences), dtype=COLUMNS[name])
        return arrays


def tokenize_batch(
    stored: Sequence[StoredRecord], encoder: Encoder, options: TokenOptions
) -> TokenBatch:
    """The tokens of some records.

    Raises:
        UserError: naming a record that cannot be tokenised, or is too long where that is an error.
    """
    records = [
        select(
            each.record,
            scores=options.scores,
            keep=options.keep,
            top_k=options.top_k,
            seed=options.seed,
            role=options.role,
        )
        for each in stored
    ]
    splits = split_records(records, encoder)
    rows = _Rows()
    for each, record, split in zip(stored, records, splits, strict=True):
        rows.counts["records"] += 1
        responses = _fitted(record, split, options, rows.counts)
        if responses is not None:
            _append(
                rows, each, record, split, responses, has_token_weights=options.has_token_weights
            )
    columns = rows.columns()
    if encoder.unknown_id is not None:
        unknown = sum(
            np.count_nonzero(columns[name] == encoder.unknown_id)
            for name in ("prompt_tokens", "response_tokens")
        )
        rows.counts["unknown_tokens"] = int(unknown)
    longest = max(len(split.prompt_ids) for split in splits)
    return TokenBatch(columns=columns, counts=rows.counts, longest_prompt=longest)


def _fitted(
    record: PreferenceRecord, split: SplitRecord, options: TokenOptions, counts: Counter[str]
) -> list[Ids] | None:
    """The responses within max_length, or None if the record is dropped."""
    room = options.max_length - len(split.prompt_ids)
    best = best_response(record.scores)
    lengths = [len(ids) for ids in split.response_ids]
    if max(lengths) <= room:
        return split.response_ids
    if options.too_long == "error":
        raise UserError(
            f"{record.id}: {len(split.prompt_ids)} prompt and {max(lengths)} response tokens "
            f"exceed data.max_length = {options.max_length}. Raise it, or set data.too_long to "
            "drop or cut_response."
        )
    too_long = [k for k, length in enumerate(lengths) if length > room]
    if room < 1:
        counts["dropped"] += 1
        counts["dropped_prompt"] += 1
        return None
    num_best = int(best in too_long)
    if options.too_long == "drop":
        counts["dropped"] += 1
        counts["dropped_best"] += num_best
        counts["dropped_other"] += len(too_long) > num_best
        return None
    return [ids[:room] for ids in split.response_ids]


def _append(
    rows: _Rows,
    stored: StoredRecord,
    record: PreferenceRecord,
    split: SplitRecord,
    responses: list[Ids],
    *,
    has_token_weights: bool,
) -> None:
    values = rows.values
    values["prompt_length"].append(len(split.prompt_ids))
    values["num_responses"].append(len(responses))
    values["part"].append(stored.part)
    values["row"].append(stored.row)
    values["prompt_hash"].append(prompt_hash(record.prompt))
    values["content_hash"].append(content_hash(record))
    values["flags"].append(_flags(record, split, responses))
    values["response_length"].extend(len(ids) for ids in responses)
    rows.scores.extend(record.scores)
    rows.prompts.append(split.prompt_ids)
    rows.responses.extend(responses)
    if has_token_weights:
        rows.weights.extend(chain.from_iterable(_weights(record, split, responses)))


def _weights(
    record: PreferenceRecord, split: SplitRecord, responses: list[Ids]
) -> Iterator[tuple[float, ...]]:
    """The weights of each response's tokens, cut like these; 1 where the record has none."""
    if record.token_weights is None:
        yield from ((1.0,) * len(ids) for ids in responses)
        return
    triples = zip(record.token_weights, split.response_ids, responses, strict=True)
    for k, (weights, whole, kept) in enumerate(triples):
        if len(weights) != len(whole):
            raise UserError(
                f"{record.id}: token_weights[{k}]: {len(weights)} weights for {len(whole)} tokens, "
                "end-of-sequence included. Give one number per token of this tokenizer."
            )
        yield weights[: len(kept)]


def _flags(record: PreferenceRecord, split: SplitRecord, responses: list[Ids]) -> int:
    best = best_response(record.scores)
    cut = {
        k
        for k, (whole, kept) in enumerate(zip(split.response_ids, responses, strict=True))
        if len(kept) < len(whole)
    }
    num_responses = len(responses)
    num_different = len({tuple(ids) for ids in split.response_ids})
    bits = {
        CUT_BEST: best in cut,
        CUT_OTHER: bool(cut - {best}),
        MERGED: split.num_merges > 0,
        TEMPLATE_CUT: split.template_cut,
        IDENTICAL: num_different < num_responses,
        ALL_IDENTICAL: num_different == 1 < num_responses,
        TIED: len(set(record.scores)) < num_responses,
    }
    return sum(bit for bit, is_set in bits.items() if is_set)
