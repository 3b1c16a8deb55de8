"""Records of a source: converted once, kept as one Arrow file, read back without copying."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from prefopt.data.cache import build_once
from prefopt.data.detect import Reader, make_reader
from prefopt.data.formats import Row, RowError
from prefopt.data.identity import digest
from prefopt.data.section import SourceSection
from prefopt.data.sources import Part
from prefopt.errors import UserError
from prefopt.types import PreferenceRecord

_VERSION = 2
"""Raise it when the same rows would give other records."""

_BATCH = 1000
_MOST_EXAMPLES = 5
_SCHEMA = pa.schema(
    [
        ("part", pa.int32()),
        ("row", pa.int64()),
        ("is_messages", pa.bool_()),
        ("prompt", pa.string()),
        ("responses", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("template", pa.string()),
        ("token_weights", pa.list_(pa.list_(pa.float64()))),
    ]
)


class RecordsInfo(BaseModel):
    """What was read to make the records."""

    model_config = ConfigDict(frozen=True)

    format: str
    num_rows: int
    num_records: int
    invalid: dict[str, int]
    """Rows dropped as invalid, by what was wrong."""
    invalid_examples: tuple[str, ...]
    """The first of them, as error lines."""
    plain_text: bool
    """Whether the records are text rather than messages."""
    is_graded: bool
    """Whether every record's scores are numbers of the data, not only an order or a label."""
    has_token_weights: bool
    """Whether any record has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRecord:
    """A record and where it came from."""

    part: int
    row: int
    record: PreferenceRecord


class RecordFile:
    """The records of one source, memory-mapped."""

    def __init__(self, folder: Path, part_names: tuple[str, ...]) -> None:
        self.folder = folder
        self.part_names = part_names
        self.info = RecordsInfo.model_validate_json((folder / "info.json").read_bytes())
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / "records.arrow")))

    @property
    def key(self) -> str:
        """Hash of the rows and of how they were read."""
        return self.folder.name

    @property
    def num_batches(self) -> int:
        """Batches that the records come in."""
        return int(self._reader.num_record_batches)

    def batch(self, number: int) -> list[StoredRecord]:
        """The records of one batch."""
        batch = self._reader.get_batch(number)
        columns = [batch.column(name).to_pylist() for name in _SCHEMA.names]
        return [self._stored(*values) for values in zip(*columns, strict=True)]

    def _stored(
        self,
        part: int,
        row: int,
        is_messages: bool,
        prompt: str,
        responses: list[str],
        scores: list[float],
        template: str | None,
        token_weights: list[list[float]] | None,
    ) -> StoredRecord:
        tools, template_kwargs = json.loads(template) if template else (None, None)
        record = PreferenceRecord(
            id=f"{self.part_names[part]}:{row}",
            prompt=json.loads(prompt) if is_messages else prompt,
            responses=tuple(map(json.loads, responses) if is_messages else responses),
            scores=tuple(scores),
            is_graded=self.info.is_graded,
            token_weights=None if token_weights is None else tuple(map(tuple, token_weights)),
            tools=tools,
            template_kwargs=template_kwargs,
        )
        return StoredRecord(part=part, row=row, record=record)

    def __reduce__(self) -> tuple[type["RecordFile"], tuple[Path, tuple[str, ...]]]:
        """Other processes open the file themselves."""
        return RecordFile, (self.folder, self.part_names)


def load_records(
    source: SourceSection,
    parts: tuple[Part, ...],
    *,
    key: str,
    invalid: str,
    cache: Path,
    part_names: tuple[str, ...],
    on_rows: Callable[[int], None],
) -> RecordFile:
    """The records of a source, converted unless the cache has them.

    Args:
        source: how the rows are read.
        parts: the opened source.
        key: where the recipe names it, like `data.sources[0]`.
        invalid: `error` or `drop`.
        cache: folder of the cache.
        part_names: names of the parts in record ids.
        on_rows: called now and then with the number of rows read.

    Raises:
        UserError: at the first unusable row, or if there is no record.
    """
    reader = make_reader(source, parts, key)
    builder = _Builder(reader=reader, parts=parts, drop=invalid == "drop", on_rows=on_rows)
    folder = build_once(records_folder(source, parts, invalid=invalid, cache=cache), builder.build)
    return RecordFile(folder, part_names)


def records_folder(
    source: SourceSection, parts: tuple[Part, ...], *, invalid: str, cache: Path
) -> Path:
    """Where the cache has the records of a source, or will have them."""
    settings = source.model_dump(include={"format", "columns", "as_messages"})
    identity = [_VERSION, settings, invalid, [[part.name, part.fingerprint] for part in parts]]
    return cache / "records" / digest(json.dumps(identity, sort_keys=True))


@dataclass(kw_only=True)
class _Builder:
    """Converts rows and counts what is dropped."""

    reader: Reader
    parts: tuple[Part, ...]
    drop: bool
    on_rows: Callable[[int], None]
    num_rows: int = 0
    num_records: int = 0
    plain_text: bool = False
    is_graded: bool = True
    has_token_weights: bool = False

    def build(self, folder: Path) -> None:
        """Write `records.arrow` and `info.json`."""
        self._invalid: Counter[str] = Counter()
        self._examples: list[str] = []
        with (
            pa.OSFile(str(folder / "records.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, _SCHEMA) as writer,
        ):
            for batch in _batches(self._cells()):
                self.num_records += len(batch)
                arrays = [
                    pa.array(values, field.type)
                    for values, field in zip(zip(*batch, strict=True), _SCHEMA, strict=True)
                ]
                writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
                self.on_rows(self.num_rows)
        if not self.num_records:
            raise UserError(self._no_records())
        info = RecordsInfo(
            format=self.reader.format.name,
            num_rows=self.num_rows,
            num_records=self.num_records,
            invalid=dict(self._invalid),
            invalid_examples=tuple(self._examples),
            plain_text=self.plain_text,
            is_graded=self.is_graded,
            has_token_weights=self.has_token_weights,
        )
        (folder / "info.json").write_text(info.model_dump_json())

    def _cells(self) -> Iterator[tuple[object, ...]]:
        """One tuple of column values per record."""
        for part_number, part in enumerate(self.parts):
            for row_number, row in self._grouped(part):
                try:
                    record = self.reader.read(row)
                except RowError as error:
                    self._refuse(f"{part.place}:{row_number}:{error}", error.problem)
                    continue
                self.plain_text |= isinstance(record.prompt, str)
                self.is_graded &= record.is_graded
                self.has_token_weights |= record.token_weights is not None
                yield part_number, row_number, *_cell_values(record)

    def _grouped(self, part: Part) -> Iterator[tuple[int, Row]]:
        """Rows, or groups of rows where the format says so."""
        column = self.reader.format.group_by
        for_all = self._counted(part)
        if column is None:
            yield from for_all
            return
        for value, group in groupby(for_all, key=lambda numbered: numbered[1].get(column)):
            rows = list(group)
            yield rows[0][0], {column: value, "rows": [row for _, row in rows]}

    def _counted(self, part: Part) -> Iterator[tuple[int, Row]]:
        for number, row in part.rows():
            self.num_rows += 1
            yield number, self.reader.rename(row)

    def _refuse(self, line: str, problem: str) -> None:
        if not self.drop:
            raise UserError(line)
        self._invalid[problem] += 1
        if len(self._examples) < _MOST_EXAMPLES:
            self._examples.append(line)

    def _no_records(self) -> str:
        places = ", ".join(part.place for part in self.parts)
        if not self.num_rows:
            return f"{places}: holds no rows. Point data.sources at a file with rows."
        return f"{places}: none of {self.num_rows} rows is usable. First: {self._examples[0]}"


def _cell_values(record: PreferenceRecord) -> tuple[object, ...]:
    is_messages = not isinstance(record.prompt, str)
    template = None
    if record.tools or record.template_kwargs:
        template = _json([record.tools, record.template_kwargs])
    numbers = (list(record.scores), template, record.token_weights)
    if not is_messages:
        return False, record.prompt, list(record.responses), *numbers
    responses = [_json(response) for response in record.responses]
    return True, _json(record.prompt), responses, *numbers


def _json(value: object) -> str:
    # Tables can hold dates and the like in fields that a template hardly reads.
    return json.dumps(value, ensure_ascii=False, default=str)


def _batches(cells: Iterable[tuple[object, ...]]) -> Iterator[list[tuple[object, ...]]]:
    batch: list[tuple[object, ...]] = []
    for values in cells:
        batch.append(values)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
