"""From a data section and a tokenizer to stores that can be trained on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefopt.data.records import RecordFile, load_records
from prefopt.data.section import DataSection, SourceSection
from prefopt.data.shard import Shard
from prefopt.data.sources import Part, open_source
from prefopt.data.split import hold_out, num_shared_prompts
from prefopt.data.store import TokenStore
from prefopt.data.summary import DataSummary, SourceSummary, notes_on, summarize
from prefopt.data.token_batch import TokenOptions
from prefopt.data.tokenize import Encoder, Tokenizer
from prefopt.data.tokens import load_tokens

OnProgress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and of how much (None: unknown)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """Data on disk, tokenised and split."""

    train: TokenStore
    evaluation: TokenStore | None
    summary: DataSummary
    source_weights: tuple[float, ...]
    """Passes per epoch over each training source, by its number."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """By which a run that goes on knows its data again."""
        stores = {"train": self.train, "evaluation": self.evaluation}
        return {name: store.fingerprint for name, store in stores.items() if store is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSource:
    """A source whose rows can be read."""

    section: SourceSection
    key: str
    """Where the recipe names it."""
    parts: tuple[Part, ...]
    part_names: tuple[str, ...]
    """Names of the parts that no other source has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """A source as records and tokens."""

    section: SourceSection
    records: RecordFile
    shard: Shard

    def summary(self) -> SourceSummary:
        """What the source gave."""
        info, counts = self.records.info, self.shard.info.counts
        return SourceSummary(
            path=self.section.path,
            format=info.format,
            weight=self.section.weight,
            role=self.section.role,
            is_graded=info.is_graded,
            rows=info.num_rows,
            invalid=info.invalid,
            invalid_examples=info.invalid_examples,
            records=info.num_records,
            too_long=counts.get("dropped", 0),
            too_long_prompt=counts.get("dropped_prompt", 0),
            too_long_best=counts.get("dropped_best", 0),
            too_long_other=counts.get("dropped_other", 0),
            unknown_tokens=counts.get("unknown_tokens", 0),
        )


def prepare_data(
    section: DataSection, tokenizer: Tokenizer, *, on_progress: OnProgress | None = None
) -> PreparedData:
    """The data of a recipe, from the cache as far as it is there.

    Several processes may call this at once: one works, the others wait for its files.

    Args:
        section: what to prepare.
        tokenizer: what turns text into ids, with its chat template.
        on_progress: told of progress while something is converted or tokenised.

    Raises:
        UserError: at the first thing that is wrong with the data, naming file, row and column.
    """
    encoder = Encoder(tokenizer)
    held_out = section.evaluation
    own = () if held_out is None or held_out.sources is None else held_out.sources
    opened = open_sources([*section.sources, *own], num_train=len(section.sources))
    # All rows are read before any is tokenised: mistakes in the data show early.
    report = on_progress or _silent
    records = [_records(source, section, report) for source in opened]
    loaded = [
        _tokens(source, each, section, encoder, report)
        for source, each in zip(opened, records, strict=True)
    ]
    train_sources, own_sources = (
        loaded[: len(section.sources)],
        loaded[len(section.sources) :],
    )
    train, evaluation = _stores(section, train_sources, own_sources)
    return PreparedData(
        train=train,
        evaluation=evaluation,
        summary=_summary(section, train_sources, own_sources, train, evaluation, encoder),
        source_weights=tuple(source.weight for source in section.sources),
    )


def _silent(what: str, done: int, total: int | None) -> None:
    """Report nothing."""


def open_sources(sources: Sequence[SourceSection], num_train: int) -> list[OpenedSource]:
    """Sources with names that no other one has, those to train on first.

    Raises:
        UserError: if one is not there, is empty or says something without effect.
    """
    opened = []
    used: Counter[str] = Counter()
    for number, source in enumerate(sources):
        key = f"data.sources[{number}]"
        if number >= num_train:
            key = f"data.evaluation.sources[{number - num_train}]"
        parts = open_source(source, key)
        names = []
        for part in parts:
            used[part.name] += 1
            names.append(part.name if used[part.name] == 1 else f"{part.name}#{used[part.name]}")
        opened.append(OpenedSource(section=source, key=key, parts=parts, part_names=tuple(names)))
    return opened


def _records(source: OpenedSource, section: DataSection, report: OnProgress) -> RecordFile:
    return load_records(
        source.section,
        source.parts,
        key=source.key,
        invalid=section.invalid,
        cache=section.cache_folder(),
        part_names=source.part_names,
        on_rows=lambda done: report(f"reading {source.section.path}", done, None),
    )


def _tokens(
    source: OpenedSource,
    records: RecordFile,
    section: DataSection,
    encoder: Encoder,
    report: OnProgress,
) -> _Loaded:
    shard = load_tokens(
        records,
        encoder,
        TokenOptions.of(
            section,
            role=source.section.role,
            has_token_weights=records.info.has_token_weights,
        ),
        cache=section.cache_folder(),
        num_workers=section.num_workers,
        on_records=lambda done: report(
            f"tokenising {source.section.path}", done, records.info.num_records
        ),
    )
    return _Loaded(section=source.section, records=records, shard=shard)


def _stores(
    section: DataSection, train_sources: Sequence[_Loaded], own_sources: Sequence[_Loaded]
) -> tuple[TokenStore, TokenStore | None]:
    everything = TokenStore([source.shard for source in train_sources])
    if section.evaluation is None:
        return everything, None
    if own_sources:
        return everything, TokenStore([source.shard for source in own_sources])
    return hold_out(
        everything,
        fraction=section.evaluation.fraction,
        num_groups=section.evaluation.num_groups,
        seed=section.seed,
    )


def _summary(
    section: DataSection,
    train_sources: Sequence[_Loaded],
    own_sources: Sequence[_Loaded],
    train: TokenStore,
    evaluation: TokenStore | None,
    encoder: Encoder,
) -> DataSummary:
    sources = tuple(source.summary() for source in train_sources)
    own = tuple(source.summary() for source in own_sources)
    shared = 0 if evaluation is None else num_shared_prompts(train, evaluation)
    train_summary = summarize(train)
    notes = list(notes_on([*sources, *own], train_summary))
    if shared:
        notes.append(
            f"{shared} prompts are in training and in evaluation data: evaluation will look better "
            "than it is."
        )
    if encoder.has_chat_template:
        notes.extend(
            f"{source.section.path} holds plain text, so the tokenizer's chat template is not "
            "used. Set as_messages: true on the source if the model is to chat."
            for source in (*train_sources, *own_sources)
            if source.records.info.plain_text
        )
    return DataSummary(
        sources=sources,
        evaluation_sources=own,
        max_length=section.max_length,
        too_long=section.too_long,
        train=train_summary,
        evaluation=None if evaluation is None else summarize(evaluation),
        shared_prompts=shared,
        notes=tuple(notes),
    )
