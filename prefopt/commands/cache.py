"""`prefopt cache`: what was computed once and kept, whether it is whole, and how to remove it."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.data.cache import errors_of_cache_are_one_line
from prefopt.data.cache_entries import CacheEntry, cache_entries
from prefopt.data.section import default_cache_folder
from prefopt.errors import UserError, did_you_mean

_DAY = 86400.0
_SHOWN_OF_KEY = 12


def show(cache_dir: Path | None) -> None:
    """Print a table of everything in the cache."""
    cache = _existing(cache_dir)
    entries = cache_entries(cache)
    table = Table(title=f"{cache}", title_justify="left", title_style="bold")
    for name in ("kind", "key"):
        table.add_column(name, no_wrap=True)
    for name in ("model", "data"):
        table.add_column(name)
    for name in ("records", "complete", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        about = entry.about
        table.add_row(
            entry.kind,
            entry.key[:_SHOWN_OF_KEY],
            Text(_names(about.model, " with ") if about else ""),
            Text(_names(about.source, ", ") if about else ""),
            f"{about.num_records:,}" if about else "",
            f"{int(100 * entry.share)}%",
            size_in_words(entry.num_bytes),
            _age(entry),
        )
    # In a file there is no reason to fold lines.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    typer.echo(f"{len(entries)} entries, {size_in_words(sum(e.num_bytes for e in entries))}")


def verify(cache_dir: Path | None) -> None:
    """Read all reference log-probs and compare their checksums.

    Raises:
        UserError: if something is incomplete or damaged, after a line for each.
    """
    cache = _existing(cache_dir)
    entries = cache_entries(cache)
    problems = {entry.key: problem for entry in entries if (problem := entry.problem())}
    for key, problem in problems.items():
        typer.echo(f"{key}: {problem}")
    if problems:
        raise UserError(
            f"{cache}: {len(problems)} of {len(entries)} entries are incomplete or damaged. "
            "The next run that needs one completes it; prefopt cache prune removes them."
        )
    typer.echo(f"{len(entries)} entries, all whole")


def prune(
    keys: Sequence[str], days: float | None, everything: bool, cache_dir: Path | None
) -> None:
    """Remove what is incomplete or damaged, or what is named, old, or all, and say what it was.

    Args:
        keys: entries to remove, by their keys or the first characters of these.
        days: remove what was last written longer ago.
        everything: remove all.
        cache_dir: the cache folder; None: $PREFOPT_CACHE or the default.

    Raises:
        UserError: for a key that is not there, contradictory options, or a folder that cannot be
            written.
    """
    if sum((bool(keys), days is not None, everything)) > 1:
        raise UserError("prefopt cache prune: give keys, --days or --all, one of them.")
    cache = _existing(cache_dir)
    entries = cache_entries(cache)
    for key in keys:
        if not any(entry.key.startswith(key) for entry in entries):
            shown = [entry.key[:_SHOWN_OF_KEY] for entry in entries]
            raise UserError(f"{cache}: no entry '{key}'. {did_you_mean(key, shown)}")
    removed = freed = 0
    for entry in entries:
        reason = _reason(entry, keys, days, everything)
        if reason is None:
            continue
        with errors_of_cache_are_one_line(entry.folder):
            is_removed = entry.remove()
        if is_removed:
            removed, freed = removed + 1, freed + entry.num_bytes
            typer.echo(f"removed {entry.kind} {entry.key}: {reason}")
        else:
            typer.echo(f"left {entry.kind} {entry.key}: a run is writing it")
    typer.echo(f"removed {removed} of {len(entries)} entries, {size_in_words(freed)}")


def size_in_words(num_bytes: int) -> str:
    """`1.5 MB`, in units of 1000."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _reason(
    entry: CacheEntry, keys: Sequence[str], days: float | None, everything: bool
) -> str | None:
    """Why an entry is to be removed; None: it is not."""
    if everything:
        return "--all"
    if keys:
        return "as asked" if entry.key.startswith(tuple(keys)) else None
    if days is not None:
        return f"{_age(entry)} old" if _seconds_old(entry) > days * _DAY else None
    return entry.problem()


def _names(paths: str, between: str) -> str:
    """The last parts of paths; about.json has them whole."""
    return between.join(Path(path).name for path in paths.split(between))


def _existing(cache_dir: Path | None) -> Path:
    cache = default_cache_folder() if cache_dir is None else cache_dir.expanduser()
    if not cache.is_dir():
        raise UserError(
            f"{cache}: no such folder, so nothing is cached there. Give --cache-dir, the "
            "data.cache_dir of your recipes."
        )
    return cache


def _seconds_old(entry: CacheEntry) -> float:
    return max(time.time() - entry.written, 0.0)


def _age(entry: CacheEntry) -> str:
    seconds = _seconds_old(entry)
    for size, name in ((_DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
