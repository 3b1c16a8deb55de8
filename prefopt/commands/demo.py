"""`prefopt demo`: imitate mixed-quality data, then learn preferences, and see what that changed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from prefopt.demo.model import gold_of_samples, save_start
from prefopt.demo.task import (
    common_mistake,
    generate,
    held_out_prompts,
    right_response,
    write_data,
)
from prefopt.errors import UserError

_NUM_RECORDS = 4000
_NUM_HELD_OUT = 256
_SAMPLING_SEED = 123


def run(output: Path, seed: int) -> None:
    """Make the task's data, train twice through `accelerate launch`, compare held-out gold scores.

    Args:
        output: folder for data, recipes, runs and results.json.
        seed: of data, weights and training.

    Raises:
        UserError: if one of the two runs fails.
    """
    transformers_logging.disable_progress_bar()
    console = Console(highlight=False)
    output.mkdir(parents=True, exist_ok=True)
    save_start(output / "start", seed)
    write_data(generate(_NUM_RECORDS, seed), output)
    console.print(
        "The task: put six letters in order, vowels first. One response of four in the\n"
        "data does; the others forget the vowels. Gold is the share of letters in the\n"
        "right place.\n"
    )
    console.print("[bold]1. Imitate all responses[/bold] (nll), from random weights")
    _train(output, "sft", sft_recipe(output, seed), console)
    console.print("\n[bold]2. Learn which responses score higher[/bold] (dpo)")
    _train(output, "dpo", _dpo_recipe(output, seed), console)
    results = {name: _gold(output / name) for name in ("sft", "dpo")}
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _report(results, output, console)


def sft_recipe(output: Path, seed: int) -> dict[str, Any]:
    """What imitates all responses of the data in a folder, from the weights in its `start`."""
    return {
        "model": {"path": str(output / "start")},
        "data": _data(output),
        "objective": {"name": "nll", "of": "all"},
        "training": {
            **_training(output / "sft", seed),
            "max_steps": 400,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 20,
            "eval_steps": 100,
            "logging_steps": 20,
        },
    }


def _dpo_recipe(output: Path, seed: int) -> dict[str, Any]:
    return {
        "model": {"path": str(output / "sft")},
        "data": _data(output),
        "objective": {"name": "dpo", "beta": 0.1},
        "training": {
            **_training(output / "dpo", seed),
            "max_steps": 100,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 5,
            "eval_steps": 25,
            "logging_steps": 5,
        },
    }


def _data(output: Path) -> dict[str, Any]:
    return {
        "sources": [{"path": str(output / "train.jsonl")}],
        "evaluation": {"num_groups": 128},
        "max_length": 32,
        "cache_dir": str(output / "cache"),
    }


def _training(folder: Path, seed: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "groups_per_step": 32,
        "seed": seed,
        "eval_strategy": "steps",
        "save_strategy": "no",
    }


def _train(output: Path, name: str, recipe: dict[str, Any], console: Console) -> None:
    """One run, started the way that a user starts one."""
    command = f"-m prefopt train {output / f'{name}.yaml'} --overwrite"
    console.print(f"   accelerate launch {command}")
    train_in_own_process(output, name, recipe)


def train_in_own_process(output: Path, name: str, recipe: dict[str, Any]) -> None:
    """Write a recipe and train it, in the place of what its folder holds.

    Raises:
        UserError: if training fails.
    """
    file = output / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    options = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    # A second thread gains nothing on so small a model, and loses much on a busy machine.
    options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--quiet"]
    command = ["-m", "prefopt", "train", str(file), "--overwrite"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if subprocess.run([*launcher, *options, *command], check=False).returncode != 0:
        raise UserError(f"the {name} run of the demo failed; its message stands above.")


def _gold(run_folder: Path) -> dict[str, float]:
    """Mean gold score on held-out prompts, of sampled and of greedy answers."""
    model = LlamaForCausalLM.from_pretrained(run_folder)
    tokenizer = AutoTokenizer.from_pretrained(run_folder)
    prompts = held_out_prompts(_NUM_HELD_OUT, seed=0)
    sampled = gold_of_samples(model, tokenizer, prompts, sample=True, seed=_SAMPLING_SEED)
    greedy = gold_of_samples(model, tokenizer, prompts, sample=False)
    return {"sampled": sum(sampled) / len(sampled), "greedy": sum(greedy) / len(greedy)}


def _report(results: dict[str, dict[str, float]], output: Path, console: Console) -> None:
    table = Table(title=f"\nGold score on {_NUM_HELD_OUT} held-out prompts", title_justify="left")
    for heading in ("answers", "after sft", "after dpo", "change"):
        table.add_column(heading, justify="left" if heading == "answers" else "right")
    for kind in ("sampled", "greedy"):
        before, after = results["sft"][kind], results["dpo"][kind]
        change = f"{after - before:+.3f}"
        table.add_row(kind, f"{before:.3f}", f"{after:.3f}", f"[bold]{change}[/bold]")
    console.print(table)
    prompt = held_out_prompts(1, seed=0)[0]
    console.print(
        f"{prompt} is right as {right_response(prompt)}; the data mostly says "
        f"{common_mistake(prompt)}.\n\n"
        f"curves   {output / 'sft' / 'curves.png'}, {output / 'dpo' / 'curves.png'}\n"
        f"recipes  {output / 'sft.yaml'}, {output / 'dpo.yaml'}\n"
        f"models   {output / 'sft'}, {output / 'dpo'}"
    )
