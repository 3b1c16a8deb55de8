"""A run's folder: whose it is, what is in it, and how a run goes on in it."""

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer_utils import get_last_checkpoint

from prefopt.errors import UserError
from prefopt.train.checkpoint import METRICS_FILE, load_state, machine_facts

RECIPE_FILE = "recipe.yaml"
_VERSIONS_FILE = "versions.json"
_PACKAGES = ("prefopt", "torch", "transformers", "accelerate", "peft", "datasets", "deepspeed")

MAY_CHANGE = (
    "training.report_to",
    "training.run_name",
    "training.save_total_limit",
    "training.save_steps",
    "training.dataloader_num_workers",
)
"""Keys that a resumed run may have changed, since no update depends on them."""


def find_start(
    folder: Path, recipe: Mapping[str, Any], *, resume: str | None, overwrite: bool
) -> Path | None:
    """Where a run in the folder would go on; changes nothing.

    Args:
        folder: the run's folder.
        recipe: the resolved recipe.
        resume: None starts a run; `auto` goes on from the newest checkpoint, or starts if there is
            none; a path goes on from that checkpoint.
        overwrite: `open_run` will remove what another run left there.

    Returns:
        The checkpoint to go on from, or None.

    Raises:
        UserError: if the folder holds another run, is no folder, or the recipe has changed.
    """
    if resume is not None and overwrite:
        raise UserError("--resume and --overwrite exclude each other. Choose one.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"training.output_dir: {folder} is a file. Give a folder.")
    if resume is None:
        _check_free(folder, overwrite=overwrite)
        return None
    checkpoint = _checkpoint(folder, resume)
    if checkpoint is None:
        _check_free(folder, overwrite=True)
    else:
        _check_same_recipe(folder, recipe)
    return checkpoint


def open_run(folder: Path, recipe: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Make the folder ready for a run, after `find_start` has found it fit.

    Args:
        folder: the run's folder; without a checkpoint, another run in it is removed.
        recipe: the resolved recipe.
        checkpoint: where the run goes on, or None.
    """
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _cut_metrics(folder, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    versions = json.dumps(installed_versions(), indent=2)
    (folder / _VERSIONS_FILE).write_text(versions + "\n", encoding="utf-8")


def differences_of_machine(checkpoint: Path, num_processes: int) -> list[str]:
    """What differs from the machine that wrote a checkpoint and so may change the last bits."""
    stored = load_state(checkpoint)
    return [
        f"{name} was {stored[name]} and is {value}"
        for name, value in machine_facts(num_processes).items()
        if stored[name] != value
    ]


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    installed = {package.metadata["Name"].lower() for package in metadata.distributions()}
    return found | {name: metadata.version(name) for name in _PACKAGES if name in installed}


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not all((folder / name).is_file() for name in (RECIPE_FILE, _VERSIONS_FILE)):
        raise UserError(
            f"training.output_dir: {folder} holds files that are no prefopt run. "
            "Give an empty or new folder."
        )
    if not overwrite:
        raise UserError(
            f"training.output_dir: {folder} holds another run. "
            "Go on with it by --resume, replace it by --overwrite, or give a new folder."
        )


def _checkpoint(folder: Path, resume: str) -> Path | None:
    if resume != "auto":
        checkpoint = Path(resume)
        load_state(checkpoint)
        if checkpoint.resolve().parent != folder.resolve():
            raise UserError(
                f"--resume: {checkpoint} does not lie in training.output_dir {folder}. "
                "A run goes on in its own folder."
            )
        return checkpoint
    newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return None if newest is None else Path(newest)


def _check_same_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    stored = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    before, after = dict(_flat(stored)), dict(_flat(recipe))
    changed = [
        f"{key} ({before.get(key, 'unset')} -> {after.get(key, 'unset')})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"--resume: the recipe is not the one that {folder} was started with: "
            f"{', '.join(changed)}. Put the old values back, or start a run in a new folder."
        )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}.{i}")
    else:
        yield prefix, value


def _cut_metrics(folder: Path, checkpoint: Path) -> None:
    """Forget lines that a killed run logged after the checkpoint: they will be logged again."""
    metrics = folder / METRICS_FILE
    if metrics.exists():
        with metrics.open("r+b") as file:
            file.truncate(load_state(checkpoint)["metrics_bytes"])
