"""A run's folder: whose it is, what is in it, and how a run goes on in it."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import UserError
from prefopt.train.checkpoint import (
    METRICS_FILE,
    best_of,
    checkpoints_in,
    load_state,
    rotate,
    step_of,
)
from prefopt.train.durable import (
    STAGING,
    clear_staging,
    failed_writes_are_one_line,
    remove_whole,
    staging_folder,
    sync,
    write_whole,
)
from prefopt.train.lock import check_not_held
from prefopt.train.resume import choose_checkpoint

RECIPE_FILE = "recipe.yaml"
MODEL_FILES = ("config.json", "adapter_config.json")
"""What a finished run holds of the two; it comes last, so all of the model is there with it."""

_NUM_NAMED = 3
"""Keys that a line about another run names."""
_VERSIONS_FILE = "versions.json"
DATA_FILE = "data.json"
"""Fingerprints of what the run is trained on."""
_PACKAGES = ("prefopt", "torch", "transformers", "accelerate", "peft", "datasets", "deepspeed")

MAY_CHANGE = (
    "training.report_to",
    "training.run_name",
    "training.save_total_limit",
    "training.save_steps",
    "training.logging_steps",
    "training.max_minutes",
    "training.max_skipped_steps",
    "training.tokens_per_micro_batch",
    "training.dataloader_num_workers",
    "data.num_workers",
    "data.cache_dir",
    "reference.cache",
    "diagnostics",
)
"""Keys that a resumed run may have changed: an update depends on them by its last bits at most, or
as with max_skipped_steps, there was none without."""


def find_start(
    folder: Path,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    resume: str | None,
    overwrite: bool,
    say: Callable[[str], None],
) -> Path | None:
    """Where a run in the folder would go on; changes nothing.

    Args:
        folder: the run's folder.
        recipe: the resolved recipe.
        data: fingerprints of the data, by name.
        resume: None starts a run, or goes on as `auto` does with this very run where it ended
            early; `auto` goes on from the newest complete checkpoint, or starts if there is none; a
            path goes on from that checkpoint.
        overwrite: `open_run` will remove what another run left there.
        say: prints a line, for every checkpoint that is passed over.

    Returns:
        The checkpoint to go on from, or None.

    Raises:
        UserError: if the folder holds another run or a finished one or is no folder, another
            process trains in it, recipe or data have changed, or there is nothing to go on from.
    """
    if resume is not None and overwrite:
        raise UserError("--resume and --overwrite exclude each other. Choose one.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"training.output_dir: {folder} is a file. Give a folder.")
    _check_prefopt(folder)
    check_not_held(folder)
    if overwrite:
        return None
    if not (folder / RECIPE_FILE).is_file():
        if resume not in (None, "auto"):
            raise UserError(
                f"--resume: there is no run in training.output_dir {folder} that could go on from "
                f"{resume}. Give the folder of that run."
            )
        return None
    if resume is None:
        _check_cut_short(folder, recipe, data)
        say(f"{folder} holds this run, which has not ended: going on with it")
        resume = "auto"
    else:
        _check_same_run(folder, recipe, data)
    needs_best = bool(recipe["training"].get("load_best_model_at_end"))
    checkpoint = choose_checkpoint(folder, resume, needs_best=needs_best, say=say)
    if checkpoint is None and any((folder / name).is_file() for name in MODEL_FILES):
        raise UserError(
            f"--resume: the run in {folder} is finished and kept no checkpoint to go on from. "
            "Replace it by --overwrite, or start a run in a new folder."
        )
    if checkpoint is not None and recipe["training"].get("save_only_model"):
        raise UserError(
            "--resume: with training.save_only_model, checkpoints hold no optimiser state to go "
            "on from. Start a run from the checkpoint's model instead, in a new folder."
        )
    return checkpoint


def open_run(
    folder: Path, recipe: Mapping[str, Any], data: Mapping[str, Any], checkpoint: Path | None
) -> None:
    """Make the folder ready for a run, after `find_start` has found it fit.

    Args:
        folder: the run's folder; without a checkpoint, another run in it is removed.
        recipe: the resolved recipe.
        data: fingerprints of the data, by name.
        checkpoint: where the run goes on, or None.

    Raises:
        UserError: if the folder cannot be written, or another process trains in it.
    """
    # The recipe comes last: with it, everything of a run's start is there.
    texts = {
        DATA_FILE: json.dumps(data, indent=2) + "\n",
        _VERSIONS_FILE: json.dumps(installed_versions(), indent=2) + "\n",
        RECIPE_FILE: yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True),
    }
    # Another process may have begun since the look, while models were read.
    check_not_held(folder)
    with failed_writes_are_one_line(folder / RECIPE_FILE):
        if checkpoint is None:
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        clear_staging(folder)
        staging_folder(folder).mkdir()
        if checkpoint is not None:
            _forget_after(folder, checkpoint)
            # A kill may have come between the last save and what it makes room for.
            rotate(folder, recipe["training"].get("save_total_limit"), best_of(checkpoint))
        for name, text in texts.items():
            write_whole(folder / name, text)
        clear_staging(folder)
        sync(folder.parent)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    installed = {package.metadata["Name"].lower() for package in metadata.distributions()}
    return found | {name: metadata.version(name) for name in _PACKAGES if name in installed}


def _check_prefopt(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    # Whoever was killed while it made the folder has left no run in it yet.
    if not names or (STAGING in names and names <= {STAGING, DATA_FILE, _VERSIONS_FILE}):
        return
    if not names >= {RECIPE_FILE, _VERSIONS_FILE}:
        raise UserError(
            f"training.output_dir: {folder} holds files that are no prefopt run. "
            "Give an empty or new folder."
        )


def _check_cut_short(folder: Path, recipe: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Refuse what is not the run of this recipe and data, or has reached its end."""
    changed = _changed_keys(folder, recipe)
    if changed or _has_other_data(folder, data):
        more = f" and {len(changed) - _NUM_NAMED} more" if len(changed) > _NUM_NAMED else ""
        what = ", ".join(changed[:_NUM_NAMED]) + more if changed else "other data"
        raise UserError(
            f"training.output_dir: {folder} holds another run: {what}. "
            "Replace it by --overwrite, or give a new folder."
        )
    if any((folder / name).is_file() for name in MODEL_FILES):
        raise UserError(
            f"training.output_dir: {folder} holds this run already, finished. "
            "Replace it by --overwrite, or give a new folder."
        )


def _check_same_run(folder: Path, recipe: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    changed = _changed_keys(folder, recipe)
    if changed:
        raise UserError(
            f"--resume: the recipe is not the one that {folder} was started with: "
            f"{', '.join(changed)}. Put the old values back, or start a run in a new folder."
        )
    if _has_other_data(folder, data):
        raise UserError(
            f"--resume: the data is not what {folder} was started with: its files or the tokenizer "
            "have changed. Put them back, or start a run in a new folder."
        )


def _changed_keys(folder: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Keys that a run may not change while it goes on, with both values."""
    stored = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    before, after = dict(flat(stored)), dict(flat(recipe))
    return [
        f"{key} ({before.get(key, 'unset')} -> {after.get(key, 'unset')})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE)
    ]


def _has_other_data(folder: Path, data: Mapping[str, Any]) -> bool:
    stored: object = json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))
    return stored != dict(data)


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a recipe by their whole keys, such as `data.sources.0.path`."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{prefix}.{i}")
    else:
        yield prefix, value


def _remove(folder: Path) -> None:
    """Remove a run in one go: whoever is killed half-way leaves no half of it under its name."""
    leaving = folder.with_name(f".{folder.name}.replaced")
    if leaving.exists():
        shutil.rmtree(leaving)
    if (folder / RECIPE_FILE).is_file():
        folder.rename(leaving)
        shutil.rmtree(leaving)


def _forget_after(folder: Path, checkpoint: Path) -> None:
    """Remove what a run left after the checkpoint: it will be trained and logged again.

    The newest goes first: after a kill the rest is a run as it once was.
    """
    metrics = folder / METRICS_FILE
    num_bytes = load_state(checkpoint)["metrics_bytes"]
    size = metrics.stat().st_size if metrics.exists() else 0
    if size < num_bytes:
        raise UserError(
            f"--resume: {metrics} is shorter than when {checkpoint} was saved. "
            "Put the file back, or start a run in a new folder."
        )
    for other in checkpoints_in(folder):
        if step_of(other) > step_of(checkpoint):
            remove_whole(other)
    if metrics.exists():
        os.truncate(metrics, num_bytes)
