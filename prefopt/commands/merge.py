"""`prefopt merge`: an adapter and its base model as one model that needs no peft."""

import os
import shutil
from pathlib import Path

import typer
import yaml
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prefopt.commands.hush import hush
from prefopt.errors import UserError
from prefopt.models.section import ModelSection
from prefopt.models.tokenizer import first_line
from prefopt.train.run_folder import RECIPE_FILE


def run(run_folder: Path, output: Path, trust_remote_code: bool = False) -> None:
    """Write the merged model, with its tokenizer, to a new folder.

    The base is loaded in the dtype and revision that the run's recipe says. Whether to run code
    that lies with it is the caller's word alone: the folder may be a stranger's. An adapter
    without recipe is merged into the base as it was saved.

    Args:
        run_folder: a finished LoRA run, or one of its checkpoints.
        output: a folder that does not exist yet, or is empty.
        trust_remote_code: run Python code that lies with the base model.

    Raises:
        UserError: if there is no adapter, its base model is gone or another one, the recipe beside
            it is broken, or the output exists or cannot be written; then nothing is left there.
    """
    hush()
    _check_folders(run_folder, output)
    section = _model_section(run_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(run_folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_folder}: no tokenizer beside the adapter. {first_line(error)}"
        ) from error
    base = _base_model(run_folder, section, trust_remote_code)
    try:
        merged = PeftModel.from_pretrained(base, run_folder).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{run_folder}: the adapter does not fit its base model {base.name_or_path}. "
            f"{first_line(error)}"
        ) from error
    staging = output.with_name(f".{output.name}.saving")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if output.exists():
            output.rmdir()
        os.replace(staging, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written. {first_line(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    typer.echo(f"merged {run_folder} and {base.name_or_path} into {output}")


def _check_folders(run_folder: Path, output: Path) -> None:
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: no such folder. Give the folder of a LoRA run.")
    if not (run_folder / "adapter_config.json").is_file():
        reason = ", it already is a whole model" if (run_folder / "config.json").is_file() else ""
        raise UserError(
            f"{run_folder}: no adapter to merge{reason}. "
            "Give the folder of a LoRA run or of one of its checkpoints."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty. Give a new folder.")


def _model_section(run_folder: Path) -> ModelSection | None:
    """What the run's recipe says of its model; None for an adapter that came without a recipe."""
    is_checkpoint = run_folder.resolve().name.startswith("checkpoint-")
    folders = [run_folder, run_folder.resolve().parent] if is_checkpoint else [run_folder]
    file = next((f / RECIPE_FILE for f in folders if (f / RECIPE_FILE).is_file()), None)
    if file is None:
        return None
    try:
        return ModelSection.model_validate(yaml.safe_load(file.read_text("utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: cannot be read as the recipe of this run. Put it back as it was, or remove "
            f"it to merge into the base as saved. {first_line(error)}"
        ) from error


def _base_model(
    run_folder: Path, section: ModelSection | None, trust_remote_code: bool
) -> PreTrainedModel:
    config = PeftConfig.from_pretrained(str(run_folder))
    path = config.base_model_name_or_path
    try:
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            revision=config.revision if section is None else section.revision,
            dtype="auto" if section is None else section.dtype,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_folder}: its base model {path} cannot be loaded. Put it back, or correct "
            f"base_model_name_or_path in adapter_config.json. {first_line(error)}"
        ) from error
    return base
