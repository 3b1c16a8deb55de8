"""`prefopt plan`: what a recipe would take on so many GPUs, without weights and without a GPU."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console

from prefopt.commands.plan_numbers import ON_ONE_GPU, Hardware, make_plan, modes_on
from prefopt.commands.plan_report import render
from prefopt.config import load_recipe
from prefopt.errors import UserError, did_you_mean
from prefopt.train.footprint import MODES, Mode


def run(
    recipe_path: Path,
    overrides: Sequence[str],
    mode: str | None,
    *,
    num_gpus: int,
    gpu_memory: float,
    peak_tflops: float,
    utilization: float,
    as_json: bool,
) -> None:
    """Print the plan of a recipe under one mode, or under all.

    Raises:
        UserError: for a recipe without a model to plan for, or hardware that makes no sense.
    """
    hardware = Hardware(
        num_gpus=num_gpus,
        gpu_memory=gpu_memory,
        peak_tflops=peak_tflops,
        utilization=utilization,
    )
    _check(hardware)
    modes = _modes(mode, num_gpus)
    plan = make_plan(load_recipe(recipe_path, overrides), modes, hardware)
    if as_json:
        typer.echo(json.dumps(asdict(plan), indent=2))
    else:
        render(plan, Console())


def _check(hardware: Hardware) -> None:
    for flag, value in (
        ("--gpus", hardware.num_gpus),
        ("--gpu-memory", hardware.gpu_memory),
        ("--peak-tflops", hardware.peak_tflops),
        ("--utilization", hardware.utilization),
    ):
        if not value > 0:
            raise UserError(f"{flag}: should be greater than 0, got {value:g}. Give what you have.")
    if hardware.utilization > 1:
        raise UserError(
            f"--utilization: should be a share of the peak, got {hardware.utilization:g}. "
            "Give 0.35 for 35 %."
        )


def _modes(name: str | None, num_gpus: int) -> tuple[Mode, ...]:
    if name is None:
        return modes_on(num_gpus)
    mode = next((mode for mode in MODES if mode == name), None)
    if mode is None:
        raise UserError(f"--mode: no mode '{name}'. {did_you_mean(name, MODES)}")
    if num_gpus == 1 and mode not in ON_ONE_GPU:
        raise UserError(
            f"--mode: {mode} needs at least 2 GPUs, got --gpus 1. Raise it, or choose single."
        )
    if num_gpus > 1 and mode == "single":
        raise UserError(
            f"--mode: single uses 1 GPU, got --gpus {num_gpus}. Choose ddp for a copy on each."
        )
    return (mode,)
