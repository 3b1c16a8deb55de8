"""`prefopt train --accelerate NAME`: the launch of accelerate, with exit codes that mean something.

accelerate and torchrun leave with 1 whatever a process left with, and end processes 30 s after a
signal, however long a checkpoint takes. So this process is the launcher itself: it passes signals
on, waits, and leaves as the first process did that ended.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
import typer
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

import prefopt
from prefopt.errors import UserError, did_you_mean
from prefopt.train.signals import REASONS, SECONDS_OF_ONE_SIGNAL, Stopped, StopReason

# In an installed package these are the files of recipes/accelerate.
_CONFIGURATIONS = Path(prefopt.__file__).parent / "launch"
# What torchrun, and every launch of accelerate, sets for the processes that it starts.
_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")
_OF_A_NODE = {
    "num_machines": "SLURM_NNODES",
    "machine_rank": "SLURM_NODEID",
    "main_process_ip": "MASTER_ADDR",
    "main_process_port": "MASTER_PORT",
}
"""Keys of a configuration for several machines, and what says them where a job runs."""


def run(configuration: str | None, num_processes: int | None, arguments: list[str]) -> int:
    """Run prefopt with some arguments on the processes of a launch configuration.

    Args:
        configuration: its name in recipes/accelerate, or a file.
        num_processes: over all machines; None for one per GPU, or what the configuration says.
        arguments: of prefopt.

    Returns:
        The exit code: that of the first process that ended, as a shell says it.

    Raises:
        UserError: for a configuration that there is not, or where a launcher is at work already.
    """
    if configuration is None:
        raise UserError(
            "--processes has no effect without --accelerate. Name a launch configuration, such as "
            "--accelerate ddp."
        )
    launched = [name for name in _OF_A_LAUNCH if name in os.environ]
    if launched:
        raise UserError(
            f"--accelerate: a launcher has started this process already: {launched[0]} is set. "
            "Leave the option out below accelerate launch and torchrun."
        )
    file = _find(configuration)
    options = _options(_read(file), num_processes, os.environ, torch.accelerator.device_count())
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = ["--config_file", str(file), *words, "-m", "prefopt", *arguments]
    # The launcher of torch would take these for itself; a closed terminal still ends everything.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    return _Launch().run(command)


def _find(configuration: str) -> Path:
    if configuration.endswith((".yaml", ".yml")) or os.sep in configuration:
        if not Path(configuration).is_file():
            raise UserError(f"--accelerate: no such file, got {configuration}. Give a YAML file.")
        return Path(configuration)
    files = {path.stem: path for path in _CONFIGURATIONS.glob("*.yaml")}
    if configuration not in files:
        raise UserError(
            f"--accelerate: no launch configuration '{configuration}'. "
            f"{did_you_mean(configuration, files)} Or give a YAML file of your own, "
            "as `accelerate config` writes them."
        )
    return files[configuration]


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"--accelerate: {file} is no YAML: {line}.") from error
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise UserError(
            f"--accelerate: {file} has no distributed_type. Give a file as `accelerate config` "
            "writes them."
        )
    return values


def _options(
    values: Mapping[str, Any],
    num_processes: int | None,
    environment: Mapping[str, str],
    num_gpus: int,
) -> dict[str, str]:
    """What differs from the configuration: the number of processes, and the machine that this is.

    Args:
        values: of the configuration.
        num_processes: as asked for.
        environment: with slurm's variables, or MASTER_ADDR and MASTER_PORT.
        num_gpus: of this machine.

    Raises:
        UserError: for a number of processes that the configuration cannot start.
    """
    options: dict[str, str] = {}
    if int(values.get("num_machines", 1)) > 1:
        options = {
            key: environment[name] for key, name in _OF_A_NODE.items() if name in environment
        }
    num_machines = int(options.get("num_machines", values.get("num_machines", 1)))
    is_alone = values["distributed_type"] == "NO"
    if num_processes is not None:
        if is_alone and num_processes > 1:
            raise UserError(
                f"--processes: the launch configuration is for one process, got {num_processes}. "
                "Name another one, such as --accelerate ddp."
            )
        if num_processes % num_machines:
            raise UserError(
                f"--processes: should be so many on each of {num_machines} machines, got "
                f"{num_processes}. Give a multiple of {num_machines}."
            )
        options["num_processes"] = str(num_processes)
    elif num_gpus and not is_alone and "gpu_ids" not in values and not values.get("use_cpu"):
        options["num_processes"] = str(num_gpus * num_machines)
    return options


class _Launch:
    """A launch under way, and what it was asked by signals."""

    def __init__(self) -> None:
        self._asked: StopReason | None = None
        self._asked_at = 0.0

    def run(self, command: list[str]) -> int:
        """The exit code of a launch of accelerate with these arguments."""
        for number in REASONS:
            signal.signal(number, self._pass_on)
        try:
            launch_command(launch_command_parser().parse_args(command))
        except ChildFailedError as error:
            first, failure = error.get_first_failure()
            return self._exit_code(f"process {first}", failure.exitcode)
        except subprocess.CalledProcessError as error:
            return self._exit_code("the process", error.returncode)
        return 0

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        processes = psutil.Process().children()
        is_second = self._asked and time.monotonic() - self._asked_at > SECONDS_OF_ONE_SIGNAL
        if self._asked is None:
            self._asked, self._asked_at = REASONS[signal.Signals(number)], time.monotonic()
        if not processes:
            line = f"{signal.Signals(number).name} before any process was started."
            raise Stopped(self._asked, line, has_saved=False)
        for process in processes:
            process.send_signal(signal.SIGKILL if is_second else number)

    def _exit_code(self, name: str, code: int) -> int:
        if code >= 0:
            return code
        if self._asked is not None:
            return self._asked.exit_code
        line = f"error: {name} was ended by {signal.Signals(-code).name}, and the others with it."
        if -code == signal.SIGKILL:
            line += " Unless somebody sent that, the machine ran out of memory."
        typer.secho(line, fg=typer.colors.RED, file=sys.stderr)
        return 128 - code
