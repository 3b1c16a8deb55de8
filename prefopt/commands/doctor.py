"""`prefopt doctor`: whether this machine is fit to train, and on what."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.commands.cache import size_in_words
from prefopt.commands.doctor_facts import Facts, Package, gather


def run(recipes: Sequence[Path], as_json: bool) -> None:
    """Print what was found, and exit with 1 if something needed is broken.

    Raises:
        UserError: for a recipe that is none, or whose model is not here.
    """
    facts = gather(recipes)
    if as_json:
        typer.echo(json.dumps({**asdict(facts), "is_well": facts.is_well}, indent=2, default=str))
    else:
        _render(facts, Console())
    if not facts.is_well:
        raise typer.Exit(1)


def _render(facts: Facts, console: Console) -> None:
    console.print(Text(f"prefopt {facts.prefopt}, Python {facts.python}, {facts.system}"))
    console.print(_packages(facts.packages))
    for device in facts.devices:
        about = f"{device.name}, {device.memory:.0f} GiB; attention over flat rows: "
        console.print(Text(f"device   {about}{device.attention}"), soft_wrap=True)
    for place in facts.places:
        kept = "" if place.used is None else f"{size_in_words(place.used)} kept, "
        line = f"{place.name:8} {place.path}: {kept}{size_in_words(place.free)} free"
        console.print(Text(f"{line}; {place.problem}" if place.problem else line), soft_wrap=True)
    if facts.fits:
        console.print(_fits(facts))
    wrong = [f"{each.name} {each.problem}" for each in facts.packages if each.is_serious]
    wrong += [place.problem for place in facts.places if place.problem]
    for line in wrong:
        console.print(Text(f"! {line}", style="red"), soft_wrap=True)
    if not wrong:
        console.print(Text("Nothing is wrong.", style="green"))


def _packages(packages: Sequence[Package]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("package", "installed", "wanted", "for", ""):
        table.add_column(name)
    for each in packages:
        table.add_row(
            each.name,
            each.installed or "-",
            each.wanted,
            each.extra or "everything",
            Text(each.problem or "", style="red" if each.is_serious else "dim"),
        )
    return table


def _fits(facts: Facts) -> Table:
    devices = len(facts.devices)
    table = Table(
        title=f"GiB per device, on {devices} of them" if devices > 1 else "GiB on this device",
        title_justify="left",
    )
    table.add_column("recipe")
    for mode in facts.fits[0].totals:
        table.add_column(mode, justify="right")
    for fit in facts.fits:
        cells = [
            Text(f"{total:.1f}") if mode in fit.fitting else Text(f"{total:.1f}, no", style="red")
            for mode, total in fit.totals.items()
        ]
        table.add_row(fit.recipe, *cells)
    return table
