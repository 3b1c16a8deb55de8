"""`prefopt doctor`: what it sees of this machine, and what it calls wrong."""

import json
import os
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
import yaml
from packaging.requirements import Requirement

from prefopt.commands import doctor, doctor_facts
from prefopt.commands.doctor_facts import gather
from tests.support.runs import recipe
from tests.support.tiny import write_inputs

ROOT = Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def installed_instead(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    found = doctor_facts._installed
    monkeypatch.setattr(
        doctor_facts, "_installed", lambda name: versions[name] if name in versions else found(name)
    )


def test_every_package_of_the_project_is_looked_at_and_all_is_well(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str]
):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(text for name in extras.keys() - {"dev", "all"} for text in extras[name]),
    ]

    doctor.run([], as_json=True)

    found = json.loads(capsys.readouterr().out)
    assert found["is_well"]
    assert {each["name"] for each in found["packages"]} == {Requirement(a).name for a in asked}
    assert all(each["installed"] for each in found["packages"])


def test_a_version_out_of_range_is_wrong_and_says_what_to_type(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    installed_instead(monkeypatch, transformers="4.57.0")

    with pytest.raises(typer.Exit) as ended:
        doctor.run([], as_json=False)

    assert ended.value.exit_code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "! transformers 4.57.0 is not <6,>=5.17: pip install 'prefopt'"


def test_a_missing_extra_is_said_and_is_no_fault(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    installed_instead(monkeypatch, openai=None)

    doctor.run([], as_json=False)

    # A terminal of 80 columns folds the table.
    printed = " ".join(capsys.readouterr().out.split())
    assert "'prefopt[judge]'" in printed
    assert "Nothing is wrong." in printed


def test_a_cache_that_cannot_be_written_is_wrong(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (in_a_folder / "cache").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "cache" and access(path, mode)
    )

    cache, here = gather([]).places

    assert cache.problem == (
        f"{in_a_folder / 'cache'} cannot be written to: set PREFOPT_CACHE to another folder"
    )
    assert here.problem is None


def test_the_cache_is_measured_and_not_made(in_a_folder: Path):
    before = gather([]).places[0]
    assert before.used == 0
    assert not (in_a_folder / "cache").exists()

    folder = in_a_folder / "cache" / "tokens" / "0"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * 1234)

    assert gather([]).places[0].used == 1234


def recipe_file(folder: Path) -> Path:
    write_inputs(folder, num_pairs=8, num_lists=1)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(folder).resolved()), encoding="utf-8")
    return file


def test_a_recipe_fits_where_there_is_memory_for_it(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    file = recipe_file(in_a_folder)
    memory = SimpleNamespace(total=8 * GIB)
    monkeypatch.setattr(doctor_facts.psutil, "virtual_memory", lambda: memory)

    (fit,) = gather([file]).fits
    assert fit.fitting == ["single"]

    # What a plan keeps in reserve is more than all there is.
    memory.total = GIB
    (fit,) = gather([file]).fits
    assert fit.fitting == []
    assert fit.totals["single"] > 1


def test_gpus_are_named_with_their_memory_and_kernels(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = recipe_file(in_a_folder)
    about: Any = SimpleNamespace(name="GPU X", major=8, minor=6, total_memory=24 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(
        doctor_facts,
        "why_not_varlen",
        lambda device, size: "too wide" if device.index == 1 and size == 128 else None,
    )

    facts = gather([file])

    assert [device.name for device in facts.devices] == 2 * ["GPU X, compute capability 8.6"]
    assert [device.memory for device in facts.devices] == [24.0, 24.0]
    assert [device.attention for device in facts.devices] == [
        "flash kernels of torch",
        "one response at a time: too wide",
    ]
    assert set(facts.fits[0].totals) == {
        *("single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
    }
    doctor.run([file], as_json=False)
    assert "on 2 of them" in capsys.readouterr().out
