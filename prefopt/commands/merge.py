"""`prefopt merge`: an adapter and its base model as one model that needs no peft."""

import os
import shutil
from pathlib import Path

import typer
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.errors import UserError


def run(run_folder: Path, output: Path) -> None:
    """Write the merged model, with its tokenizer, to a new folder.

    Args:
        run_folder: a finished LoRA run, or one of its checkpoints.
        output: a folder that does not exist yet, or is empty.

    Raises:
        UserError: if there is no adapter, its base model is gone, or the output exists.
    """
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: no such folder. Give the folder of a LoRA run.")
    if not (run_folder / "adapter_config.json").is_file():
        reason = "it already is a whole model" if (run_folder / "config.json").is_file() else ""
        raise UserError(
            f"{run_folder}: no adapter to merge{f', {reason}' if reason else ''}. "
            "Give the folder of a LoRA run or of one of its checkpoints."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty. Give a new folder.")
    base_path = PeftConfig.from_pretrained(str(run_folder)).base_model_name_or_path
    try:
        base = AutoModelForCausalLM.from_pretrained(base_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_folder}: its base model {base_path} cannot be loaded. "
            "Put it back, or correct base_model_name_or_path in adapter_config.json."
        ) from error
    merged = PeftModel.from_pretrained(base, run_folder).merge_and_unload(safe_merge=True)
    staging = output.with_name(f".{output.name}.saving")
    shutil.rmtree(staging, ignore_errors=True)
    merged.save_pretrained(staging)
    AutoTokenizer.from_pretrained(run_folder).save_pretrained(staging)
    if output.exists():
        output.rmdir()
    os.replace(staging, output)
    typer.echo(f"merged {run_folder} and {base_path} into {output}")
