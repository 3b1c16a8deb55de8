"""Which format a source has, and rows under the names that the format knows."""

from dataclasses import dataclass

from prefopt.data.formats import FORMATS, Format, Row, RowError
from prefopt.data.formats.check import TEMPLATE_COLUMNS, to_record
from prefopt.data.section import SourceSection
from prefopt.data.sources import Part
from prefopt.errors import UserError, did_you_mean
from prefopt.types import PreferenceRecord

_PROMPT_COLUMNS = {"prompt", "instruction", "question", "context", "conversations", "query"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """Turns the rows of one source into records."""

    format: Format
    columns: dict[str, str | None]
    as_messages: bool

    def rename(self, row: Row) -> Row:
        """The row under the format's column names, without hidden columns."""
        return rename(row, self.columns)

    def read(self, row: Row) -> PreferenceRecord:
        """The record of a renamed row, without an id.

        Raises:
            RowError: if it holds none; the column is named as the file names it.
        """
        try:
            return to_record(self.format, row, "", as_messages=self.as_messages)
        except RowError as error:
            for ours, theirs in self.columns.items():
                if theirs is not None and _is_part_of(error.column, ours):
                    name = theirs + error.column.removeprefix(ours)
                    raise RowError(name, error.problem, error.way_out) from error
            raise


def rename(row: Row, columns: dict[str, str | None]) -> Row:
    """The row with columns renamed from theirs to ours; those mapped to None are left out."""
    if not columns:
        return row
    taken = set(columns.values())
    kept = {name: row[name] for name in row if name not in taken and name not in columns}
    found = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return kept | found


def make_reader(source: SourceSection, parts: tuple[Part, ...], key: str) -> Reader:
    """A reader for a source, its format detected from the first row unless it is named.

    Raises:
        UserError: if the format is unknown or does not fit, or `columns` or `as_messages` would
            have no effect.
    """
    first = next((row for part in parts for _, row in part.rows()), None)
    place = parts[0].place
    if first is None:
        raise UserError(f"{place}: holds no rows. Point data.sources at a file with rows.")
    for ours, theirs in source.columns.items():
        wanted = ours if theirs is None else theirs
        if wanted not in first:
            raise UserError(
                f"{key}.columns.{ours}: {place} has no column '{wanted}'. "
                f"{did_you_mean(wanted, first)}"
            )
    renamed = rename(first, source.columns)
    format = _find(source, renamed, first, place, key)
    _check_columns(source, format, key)
    return Reader(format=format, columns=source.columns, as_messages=source.as_messages)


def _find(source: SourceSection, row: Row, raw: Row, place: str, key: str) -> Format:
    names = {format.name: format for format in FORMATS}
    if source.format == "auto":
        for format in FORMATS:
            if format.accepts(row):
                return format
        raise UserError(_nothing_matches(row, place, key))
    if source.format not in names:
        raise UserError(
            f"{key}.format: no format '{source.format}'. {did_you_mean(source.format, names)}"
        )
    format = names[source.format]
    for column in format.required:
        if column not in row:
            raise UserError(
                f"{place}:1:{column}: missing column for format '{format.name}', found "
                f"{', '.join(raw)}. Map it with {key}.columns: {{{column}: THEIR_NAME}}."
            )
    return format


def _nothing_matches(row: Row, place: str, key: str) -> str:
    found = ", ".join(row) or "no columns"
    tried = ", ".join(f"{each.name} ({', '.join(each.required)})" for each in FORMATS)
    if set(row) <= _PROMPT_COLUMNS:
        problem = f"only prompts and no responses, found the columns {found}"
    else:
        problem = f"no known format has the columns {found}"
    return f"{place}: {problem}. Map them with {key}.columns; tried {tried}."


def _check_columns(source: SourceSection, format: Format, key: str) -> None:
    known = (*format.required, *format.optional, *TEMPLATE_COLUMNS)
    for ours, theirs in source.columns.items():
        if theirs is not None and ours not in known:
            raise UserError(
                f"{key}.columns.{ours}: format '{format.name}' does not read it. "
                f"{did_you_mean(ours, known)}"
            )


def _is_part_of(column: str, ours: str) -> bool:
    """Whether an error's column is `ours` or lies inside it, like `responses[2]`."""
    return column.removeprefix(ours)[:1] in ("", "[", ".") and column.startswith(ours)
