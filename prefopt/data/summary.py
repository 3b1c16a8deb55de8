"""What prepared data holds, in plain numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num, Shaped
from pydantic import BaseModel, ConfigDict

from prefopt.data.shard import (
    ALL_IDENTICAL,
    CUT_BEST,
    CUT_OTHER,
    IDENTICAL,
    MERGED,
    TEMPLATE_CUT,
    TIED,
)
from prefopt.data.store import TokenStore

_PLAIN = ConfigDict(frozen=True, use_attribute_docstrings=True)
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


class Quantiles(BaseModel):
    """How lengths are spread, in tokens."""

    model_config = _PLAIN

    mean: float
    smallest: int
    median: float
    p90: float
    p99: float
    largest: int


class SourceSummary(BaseModel):
    """What one source gave."""

    model_config = _PLAIN

    path: str
    format: str
    """The format that its rows have."""
    weight: float
    role: str | None
    """What unlearning does with it; None in any other run."""
    is_graded: bool
    """Whether its scores are numbers of the data, not only an order or a label."""
    rows: int
    """Rows read."""
    invalid: dict[str, int]
    """Rows dropped as unusable, by what was wrong."""
    invalid_examples: tuple[str, ...]
    """The first of them."""
    records: int
    """Records that the rows make, before lengths are looked at."""
    too_long: int
    """Records dropped for their length."""
    too_long_prompt: int
    """Of these: the prompt alone leaves no room for a response."""
    too_long_best: int
    """Of these: the best-scored response does not fit (and maybe others do not)."""
    too_long_other: int
    """Of these: another response does not fit."""
    unknown_tokens: int
    """Tokens that the tokenizer does not know."""


class StoreSummary(BaseModel):
    """What one side, training or evaluation, holds."""

    model_config = _PLAIN

    records: int
    responses: int
    prompts: int
    """Different prompts, up to case and white space."""
    responses_per_record: dict[int, int]
    """K -> number of records with K responses."""
    prompt_lengths: Quantiles
    best_lengths: Quantiles
    """Of the best-scored response of each record."""
    other_lengths: Quantiles | None
    """Of all other responses; None where every record has one."""
    comparable: int
    """Records with two responses that differ in text and in score."""
    tied: int
    """Records in which some responses share a score."""
    all_tied: int
    """Records of several responses that all share one score."""
    identical: int
    """Records in which some responses are the same."""
    all_identical: int
    """Records of several responses that are all the same."""
    duplicates: int
    """Records whose prompt and responses another record before has too."""
    cut_best: int
    """Records whose best-scored response was cut to max_length."""
    cut_other: int
    """Records of which another response was cut."""
    merged: int
    """Records in which tokens merged across the end of the prompt."""
    template_cut: int
    """Records whose generation prompt the chat template writes differently before an answer."""
    tokens_repeated: int
    """Tokens with the prompt repeated for each response."""
    tokens_shared: int
    """Tokens with the prompt computed once per record."""


class DataSummary(BaseModel):
    """Everything that `prefopt validate` reports about data."""

    model_config = _PLAIN

    sources: tuple[SourceSummary, ...]
    evaluation_sources: tuple[SourceSummary, ...]
    """Empty where evaluation data is held out of the training sources, or there is none."""
    max_length: int
    too_long: str
    """What became of records beyond max_length."""
    train: StoreSummary
    evaluation: StoreSummary | None
    shared_prompts: int
    """Prompts that training and evaluation have in common."""
    notes: tuple[str, ...]
    """What a person should look at, a line each."""


def summarize(store: TokenStore) -> StoreSummary:
    """The numbers of one side."""
    is_best = _is_best(store)
    lengths = store.all_response_lengths
    flags = store.flags
    counts, frequencies = np.unique(store.num_responses, return_counts=True)
    per_record = np.maximum.reduceat(store.all_scores, store.first_responses[:-1])
    lowest = np.minimum.reduceat(store.all_scores, store.first_responses[:-1])
    several = store.num_responses > 1
    all_tied = several & (per_record == lowest)
    all_identical = (flags & ALL_IDENTICAL) > 0
    response_tokens = int(lengths.sum())
    return StoreSummary(
        records=len(store),
        responses=len(lengths),
        prompts=len(np.unique(store.prompt_hashes)),
        responses_per_record=dict(zip(counts.tolist(), frequencies.tolist(), strict=True)),
        prompt_lengths=_quantiles(store.prompt_lengths),
        best_lengths=_quantiles(lengths[is_best]),
        other_lengths=None if is_best.all() else _quantiles(lengths[~is_best]),
        comparable=int((several & ~all_tied & ~all_identical).sum()),
        tied=_num_set(flags, TIED),
        all_tied=int(all_tied.sum()),
        identical=_num_set(flags, IDENTICAL),
        all_identical=int(all_identical.sum()),
        duplicates=len(store) - len(np.unique(store.content_hashes)),
        cut_best=_num_set(flags, CUT_BEST),
        cut_other=_num_set(flags, CUT_OTHER),
        merged=_num_set(flags, MERGED),
        template_cut=_num_set(flags, TEMPLATE_CUT),
        tokens_repeated=int((store.num_responses * store.prompt_lengths).sum()) + response_tokens,
        tokens_shared=int(store.prompt_lengths.sum()) + response_tokens,
    )


def _num_set(flags: Shaped[np.ndarray, " n"], bit: int) -> int:
    return int(np.count_nonzero(flags & bit))


def _is_best(store: TokenStore) -> Shaped[np.ndarray, " r"]:
    """True at the first highest-scored response of each record."""
    first = store.first_responses[:-1]
    highest = np.maximum.reduceat(store.all_scores, first)
    is_highest = store.all_scores == np.repeat(highest, store.num_responses)
    # The first in each record: no other since the record's start.
    seen = np.cumsum(is_highest)
    before = np.repeat(seen[first] - is_highest[first], store.num_responses)
    return np.asarray(is_highest & (seen - before == 1))


def _quantiles(lengths: Num[np.ndarray, " n"]) -> Quantiles:
    smallest, median, p90, p99, largest = np.quantile(lengths, _QUANTILES).tolist()
    return Quantiles(
        mean=float(lengths.mean()),
        smallest=int(smallest),
        median=median,
        p90=p90,
        p99=p99,
        largest=int(largest),
    )


def notes_on(sources: Sequence[SourceSummary], train: StoreSummary) -> tuple[str, ...]:
    """Lines about what is probably not meant."""
    notes = []
    if train.responses > train.records and not train.comparable:
        notes.append("No record has two responses that differ in text and in score.")
    unknown = sum(source.unknown_tokens for source in sources)
    if unknown:
        notes.append(f"{unknown} tokens are unknown to the tokenizer.")
    if train.template_cut:
        notes.append(
            f"In {train.template_cut} records the chat template ends the prompt differently once "
            "an answer follows; training sees the part that both have."
        )
    return tuple(notes)
