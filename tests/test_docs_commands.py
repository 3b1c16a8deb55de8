"""Every shell command of README and docs/ runs and succeeds, or stands here with a reason.

The commands of a page run in their order, in a folder that has what they name (small models, runs
and files: tests/support/stand_ins.py). Inline code only describes; tests/test_docs.py checks it.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.judge_server import serving
from tests.support.pages import DOCS, ROOT, blocks, name_of
from tests.support.stand_ins import comparison, judge_or_answer, write_user_folder, write_yaml

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

NOT_RUN = {
    "make ": "sets up .venv from the package index; CI starts with it",
    "pip install ": "needs the package index",
    "python3 -m venv ": "is set-up, before pip",
    "python -m pytest ": "runs the tests themselves",
    "python scripts/unlearn_tofu.py ": "takes hours; tests/test_unlearning_script.py runs --small",
    "prefopt compare --demo": "takes a quarter of an hour; its parts run with tests/commands",
    "prefopt train --accelerate zero3 --processes 4 ": (
        "needs four cores; tests/commands/test_launch.py has --processes"
    ),
    "accelerate launch ": "needs a second machine; tests/invariants/ starts it on one",
    "torchrun ": "needs a second machine; tests/invariants/ starts it on one",
    "#!/bin/bash\n#SBATCH ": "needs slurm",
}
"""Beginnings of commands that do not run here, and why."""

RUN_ELSEWHERE = {
    ("README.md", "prefopt train recipe.yaml"): "docs/quick-start.md",
    ("README.md", "prefopt train --accelerate zero3 recipe.yaml"): "docs/launching.md",
    ("docs/choosing.md", "prefopt compare comparison.yaml"): "docs/evaluation.md",
    ("docs/launching.md", "prefopt train recipe.yaml"): "docs/quick-start.md",
}
"""Commands of a page that run with those of another."""

# The commands of these pages begin where quick-start.md has trained runs/first.
HAS_TRAINED = {"docs/diagnostics.md"}

# One line each is another way to do the same, not the next thing to do.
ALTERNATIVES = {"README.md", "docs/launching.md"}

LEFT_BEHIND = {
    "docs/quick-start.md": [
        "runs/first/README.md",
        "runs/first/recipe.yaml",
        "runs/first/metrics.jsonl",
        "runs/first/curves.png",
        "runs/first/diagnosis/report.html",
        "runs/second/recipe.yaml",
        "merged/config.json",
        "generations/merged.jsonl",
    ],
    "docs/coming-from-trl.md": ["converted.yaml"],
    "docs/evaluation.md": [
        "runs/compare/report.html",
        "runs/compare/report.md",
        "runs/compare/report.json",
        "model_outputs.json",
        "evaluation/pairs.json",
    ],
}
"""Files that a page says are there after its commands."""


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's shell blocks without comments; a script with a head is one."""
    for body in blocks(page, "bash"):
        if body.startswith("#!"):
            yield body
            continue
        for line in body.replace("\\\n", " ").splitlines():
            if command := re.sub(r"(^|\s)#.*", "", line).strip():
                yield command


def reason_not_to_run(command: str) -> str | None:
    return next((why for begin, why in NOT_RUN.items() if command.startswith(begin)), None)


def run_on(page: Path) -> list[str]:
    return [
        command
        for command in commands(page)
        if reason_not_to_run(command) is None and (name_of(page), command) not in RUN_ELSEWHERE
    ]


def test_what_is_not_run_is_on_a_page():
    found = [command for page in PAGES for command in commands(page)]

    assert [each for each in NOT_RUN if not any(one.startswith(each) for one in found)] == []


def test_what_runs_with_another_page_is_on_both():
    for (page, command), other in RUN_ELSEWHERE.items():
        assert command in commands(ROOT / page)
        assert command in run_on(ROOT / other)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-ins")
    # What runs remember must be relative, so that copies of the folder stand for themselves.
    with contextlib.chdir(folder):
        write_user_folder(Path())
    return folder


def shown(keys: set[str], *pages: Path) -> dict[str, Any]:
    """The first YAML block of the pages that has these keys."""
    for page in pages:
        for values in map(yaml.safe_load, blocks(page, "yaml")):
            if isinstance(values, dict) and keys <= values.keys():
                return values
    raise AssertionError(f"no page shows {keys}")


def files_of(page: Path) -> dict[str, Any]:
    """The recipe, the judge and the TRL config that a page shows, or those of other pages."""
    recipe = shown({"model", "objective"}, page, ROOT / "docs" / "quick-start.md")
    # There is no GPU here, and an engine that finds none wants to be told.
    recipe["training"]["use_cpu"] = True
    judge = shown({"backend"}, page, ROOT / "docs" / "evaluation.md")
    trl = shown({"model_name_or_path"}, ROOT / "docs" / "coming-from-trl.md")
    return {
        "recipe.yaml": recipe,
        "judge.yaml": judge,
        "comparison.yaml": comparison(),
        "trl.yaml": trl,
    }


class User:
    """Somebody in a folder, with prefopt installed and a server where the docs have one."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = f"127.0.0.1:{port}"
        tools = folder / "bin"
        tools.mkdir()
        script = tools / "prefopt"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m prefopt "$@"\n')
        script.chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PREFOPT_CACHE": str(folder / "cache"),
            "JUDGE_KEY": "none",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def put(self, files: dict[str, Any]) -> None:
        for name, values in files.items():
            write_yaml(self.folder / name, values)
            path = self.folder / name
            path.write_text(path.read_text().replace("127.0.0.1:8000", self._port))

    def does(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-c", command.replace("127.0.0.1:8000", self._port)],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name_of(page)) for page in PAGES if run_on(page)]
)
def test_the_commands_of_a_page_run(page: Path, stand_ins: Path, tmp_path: Path):
    lines = run_on(page)
    with serving(judge_or_answer) as server:
        rounds = [[line] for line in lines] if name_of(page) in ALTERNATIVES else [lines]
        for number, some in enumerate(rounds):
            folder = tmp_path / str(number)
            shutil.copytree(stand_ins, folder)
            if name_of(page) in HAS_TRAINED:
                shutil.copytree(folder / "runs" / "dpo", folder / "runs" / "first")
            user = User(folder, server.server_port)
            user.put(files_of(page))
            for command in some:
                user.does(command)

    expected = LEFT_BEHIND.get(name_of(page), [])
    assert [each for each in expected if not (folder / each).exists()] == []
