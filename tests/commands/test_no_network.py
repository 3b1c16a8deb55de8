"""Training on local files reports to nobody and asks nobody: no connection is even tried."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.launch import REPOSITORY
from tests.support.runs import LORA, recipe
from tests.support.tiny import write_inputs

GUARD = REPOSITORY / "tests" / "support" / "no_network"
# What the gate sets so that nothing is asked or reported; a user has none of it.
SWITCHES = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK")


def run(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code of Python with these arguments, and the addresses that it was refused."""
    environment = {key: value for key, value in os.environ.items() if key not in SWITCHES}
    refused = folder / "refused"
    refused.touch()
    done = subprocess.run(
        [sys.executable, *arguments],
        env={
            **environment,
            "PYTHONPATH": f"{GUARD}{os.pathsep}{environment.get('PYTHONPATH', REPOSITORY)}",
            "REFUSED": str(refused),
            "HF_HOME": str(folder / "huggingface"),
        },
        cwd=folder,
        capture_output=True,
        check=False,
    )
    return done.returncode, refused.read_text(encoding="utf-8").splitlines()


def test_what_asks_the_hub_is_refused_and_seen(tmp_path: Path):
    ask = "import huggingface_hub; huggingface_hub.model_info('org/model')"

    code, refused = run(tmp_path, "-c", ask)

    assert code == 1
    assert "socket.getaddrinfo huggingface.co" in refused


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="all weights"),
        pytest.param({"adapter": LORA}, id="adapter", marks=pytest.mark.slow),
        pytest.param(
            {"training": {"report_to": ["tensorboard"]}, "data": {"evaluation": {"num_groups": 2}}},
            id="tensorboard",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_on_local_files_tries_no_connection(tmp_path: Path, sections: dict):
    write_inputs(tmp_path, num_pairs=12, num_lists=1)
    resolved = recipe(tmp_path, **sections).resolved()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(resolved), encoding="utf-8")

    assert run(tmp_path, "-m", "prefopt", "train", "recipe.yaml") == (0, [])
    assert (tmp_path / "run" / "README.md").is_file()


@pytest.mark.slow
def test_the_demo_tries_no_connection(tmp_path: Path):
    assert run(tmp_path, "-m", "prefopt", "demo") == (0, [])
