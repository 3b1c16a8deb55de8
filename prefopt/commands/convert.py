"""`prefopt convert`: the recipe that trains as a config of TRL's command line does."""

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml

from prefopt.commands.convert_config import TRAINERS, TrlConfig, choose_trainer, in_new_words
from prefopt.commands.convert_draft import Draft
from prefopt.commands.convert_objective import LOSSES, objective_of
from prefopt.commands.convert_sections import write_adapter, write_data, write_model
from prefopt.commands.convert_training import write_training
from prefopt.config import recipe_of
from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.files import write_whole
from prefopt.yaml_text import read_mapping


def run(
    config: Path,
    *,
    trainer: str | None,
    processes: int | None,
    skip: Sequence[str],
    output: Path | None,
    overwrite: bool,
) -> None:
    """Write the recipe to a file, or to standard output with the notes on standard error.

    Args:
        config: the YAML file.
        trainer: TRL's, or None to tell by the keys.
        processes: those TRL would run on, or None for what the file says.
        skip: keys to leave out although they change what is learned; dots lead into other keys.
        output: the file to write, or None.
        overwrite: replace what is there.

    Raises:
        UserError: if the file is no such config, the output exists or cannot be written, or with
            a line for each key that has no counterpart.
    """
    if output is not None and output.exists() and not overwrite:
        raise UserError(f"{output} is there already. Name another file, or add --overwrite.")
    if output is not None and not output.parent.is_dir():
        raise UserError(
            f"{output}: cannot write the recipe, No such file or directory. Make its folder first."
        )
    given = read_mapping(
        config, what="TRL config", keys="model_name_or_path, dataset_name and other keys"
    )
    text, notes = recipe_text(given, trainer=trainer, processes=processes, skip=skip)
    heading = f"# From {config.name}, by prefopt convert.\n"
    if output is None:
        sys.stdout.write(heading + text)
    else:
        try:
            write_whole(output, heading + text)
        except OSError as error:
            raise UserError(f"{output}: cannot write the recipe, {error.strerror}.") from error
    for note in notes:
        typer.echo(note, err=True)
    if output is not None:
        typer.echo(f"recipe in {output}")


def recipe_text(
    given: Mapping[str, Any],
    *,
    trainer: str | None = None,
    processes: int | None = None,
    skip: Sequence[str] = (),
) -> tuple[str, list[str]]:
    """The recipe as YAML with comments, and what its reader should know.

    Raises:
        UserError: for values that are no such config, and for keys that have no counterpart.
    """
    notes = [f"left out {key}: by --skip; TRL trains with it." for key in skip]
    values = in_new_words(_without(given, skip))
    launched = values.pop("num_processes", None)
    number = _number_of(launched if processes is None else processes)
    if trainer is None:
        trainer = choose_trainer(values, LOSSES)
        notes.append(f"read as a config of TRL's {trainer}; --trainer says another.")
    elif trainer not in TRAINERS:
        raise UserError(f"--trainer {trainer}: no such trainer. {did_you_mean(trainer, TRAINERS)}")
    config = TrlConfig(values, trainer, number)
    draft = Draft()
    write_model(config, draft)
    write_data(config, draft)
    draft.sections["objective"] = objective_of(config)
    write_adapter(config, draft)
    write_training(config, draft)
    config.finish()
    notes += config.notes
    text = draft.text(notes)
    recipe_of(yaml.safe_load(text))
    return text, notes


def _without(given: Mapping[str, Any], skip: Sequence[str]) -> dict[str, Any]:
    """The values without some keys; `datasets.0.fraction` leads into lists and mappings."""
    values = copy.deepcopy(dict(given))
    for path in skip:
        *parents, last = path.split(".")
        place: Any = values
        for parent in parents:
            place = place[int(parent)] if _is_index(place, parent) else _child(place, parent)
        if not isinstance(place, dict) or last not in place:
            raise UserError(f"--skip {path}: the file has no such key. Remove the option.")
        del place[last]
    return values


def _is_index(place: Any, text: str) -> bool:
    return isinstance(place, list) and text.isdigit() and int(text) < len(place)


def _child(place: Any, name: str) -> Any:
    return place.get(name) if isinstance(place, dict) else None


def _number_of(processes: Any) -> int:
    if processes is None:
        return 1
    if type(processes) is not int or processes < 1:
        raise UserError(f"num_processes should be a whole number from 1, got {processes!r}.")
    return processes
