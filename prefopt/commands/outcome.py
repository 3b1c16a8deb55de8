"""What a run came to, for whoever started it: before and after, files, what to type next."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prefopt.train.checkpoint import METRICS_FILE

_SHARE_AVERAGED = 10
"""The first and the last tenth of what was logged are averaged: single steps are noisy."""

_ROWS = (
    ("loss", "loss", "{:.4g}"),
    ("reward margin", "rewards/margins", "{:.3g}"),
    ("ranking accuracy", "rewards/accuracies", "{:.1%}"),
    ("log-prob of chosen, nats", "logps/chosen", "{:.2f}"),
    ("log-prob of rejected, nats", "logps/rejected", "{:.2f}"),
    ("log-prob, nats", "logps/mean", "{:.2f}"),
)


def print_outcome(
    history: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    is_adapter: bool,
    console: Console | None = None,
) -> None:
    """Print how the numbers moved, where everything is, and the commands that follow.

    Args:
        history: log lines of the whole run, those of evaluations included.
        folder: the run's folder.
        is_adapter: whether it holds an adapter, which can be merged.
        console: standard output by default.
    """
    console = console or Console(highlight=False)
    if any("loss" in line for line in history):
        console.print(_table(history))
        if fallen := _fall(history):
            console.print(
                f"Chosen responses became less likely, by {fallen:.2g} nats. That is common, and "
                "docs/diagnostics.md says when it is bad.",
                soft_wrap=True,
            )
    console.print(
        f"model in {folder}, curves in {folder / 'curves.png'}, numbers in {folder / METRICS_FILE}",
        soft_wrap=True,
        markup=False,
    )
    place = shlex.quote(str(folder))
    following = [f"prefopt generate {place} --prompts PROMPTS"]
    if is_adapter:
        following.insert(0, f"prefopt merge {place} {shlex.quote(f'{folder}-merged')}")
    for i, command in enumerate(following):
        console.print(f"{'next: ' if i == 0 else '      '}{command}", soft_wrap=True, markup=False)


def _table(history: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in ("at first", "at last"):
        table.add_column(name, justify="right")
    is_held_out = any("eval_loss" in line for line in history)
    if is_held_out:
        table.add_column("held out", justify="right")
    for label, key, form in _ROWS:
        values = _values(history, key)
        if not values:
            continue
        held_out = _values(history, f"eval_{key}")
        table.add_row(label, *(form.format(each) for each in (*_ends(values), *held_out[-1:])))
    return table


def _values(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [line[key] for line in history if key in line]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last tenth."""
    num = max(1, len(values) // _SHARE_AVERAGED)
    return sum(values[:num]) / num, sum(values[-num:]) / num


def _fall(history: Sequence[Mapping[str, Any]]) -> float:
    """By how much the log-prob of chosen responses fell, or 0."""
    values = _values(history, "logps/chosen")
    if not values:
        return 0.0
    first, last = _ends(values)
    return max(0.0, first - last)
