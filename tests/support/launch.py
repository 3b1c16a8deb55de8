"""Starting the product as a user does, in processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONFIGURATIONS = REPOSITORY / "recipes" / "accelerate"

# DeepSpeed keeps small parameters whole unless this says otherwise, which would hide ZeRO-3.
_ZERO_3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


def run(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, one thread per process, in the repository's folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def launch(
    mode: str, *arguments: str | Path, configuration: Path | None = None, **options: object
) -> str:
    """Run a script or `-m module` through `accelerate launch`; return its output.

    Args:
        mode: a name in recipes/accelerate.
        arguments: what is launched.
        configuration: another file than that of the name.
        options: of `run`.
    """
    file = configuration or CONFIGURATIONS / f"{mode}.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", file]
    result = run(*launcher, *arguments, **options)
    assert result.returncode == 0, (
        f"{mode} failed:\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    )
    return result.stdout


def launch_for_all(mode: str, script: str, output: Path) -> str:
    """Run a script of tests/invariants in a mode, on a new folder, with ZeRO-3 dividing all of it.

    Args:
        mode: a name in recipes/accelerate.
        script: the name of the file; it is given the folder.
        output: the folder, in one that all modes share.
    """
    output.mkdir()
    return launch(
        mode,
        REPOSITORY / "tests" / "invariants" / script,
        output,
        configuration=partitioning_zero_3(output.parent) if mode == "zero3" else None,
        environment={"PYTHONPATH": str(REPOSITORY)},
    )


def partitioning_zero_3(folder: Path) -> Path:
    """A launch configuration in the folder, under which ZeRO-3 divides tiny models as well."""
    deepspeed = folder / "zero3.json"
    deepspeed.write_text(json.dumps(_ZERO_3))
    return deepspeed_configuration(folder, deepspeed)


def deepspeed_configuration(folder: Path, deepspeed: Path) -> Path:
    """A launch configuration in the folder, for two processes and a DeepSpeed file."""
    file = folder / f"{deepspeed.stem}.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_processes: 2\n"
        "num_machines: 1\ndeepspeed_config:\n"
        f"  deepspeed_config_file: {deepspeed}\n  zero3_init_flag: true\n"
    )
    return file
