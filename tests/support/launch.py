"""Starting the product as a user does, in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONFIGURATIONS = REPOSITORY / "recipes" / "accelerate"


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
