"""Which processes `--accelerate` starts, what it refuses, and what it leaves with."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import yaml
from accelerate.commands.config import load_config_from_file

import prefopt
from prefopt.commands import launch
from prefopt.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = ROOT / "recipes" / "accelerate"
NAMES = [
    "ddp",
    "fsdp2",
    "single",
    "zero1",
    "zero2",
    "zero3",
    "zero3_multinode",
    "zero3_offload",
]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SLURM_NNODES", "SLURM_NODEID", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    # `run` sets it for the launcher.
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What accelerate launch would have been called with."""
    started: list[list[str]] = []

    def start() -> SimpleNamespace:
        return SimpleNamespace(run=lambda command: started.append(command) or 0)

    monkeypatch.setattr(launch, "_Launch", start)
    monkeypatch.setattr(launch.torch.accelerator, "device_count", lambda: 0)
    return started


def test_the_configurations_are_those_that_the_docs_list():
    assert sorted(path.stem for path in FILES.glob("*.yaml")) == NAMES
    listed = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in listed] == []


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_every_configuration(name: str):
    config = load_config_from_file(str(FILES / f"{name}.yaml"))

    kind = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
    assert str(config.distributed_type).endswith(kind)
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[len("zero")])
        device = "cpu" if name == "zero3_offload" else "none"
        assert config.deepspeed_config["offload_optimizer_device"] == device
        assert config.deepspeed_config["offload_param_device"] == device
    assert config.num_machines == (2 if name == "zero3_multinode" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_file_of_the_package(name: str, commands: list[list[str]]):
    assert launch.run(name, None, ["train", "r.yaml", "a.b=1", "--resume", "auto"]) == 0

    [[flag, file, *others]] = commands
    assert flag == "--config_file"
    assert Path(file).parent.parent == Path(prefopt.__file__).parent
    assert Path(file).read_bytes() == (FILES / f"{name}.yaml").read_bytes()
    assert others == ["-m", "prefopt", "train", "r.yaml", "a.b=1", "--resume", "auto"]


def test_a_file_of_ones_own_is_taken_as_it_is(tmp_path: Path, commands: list[list[str]]):
    file = tmp_path / "mine.yml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")

    launch.run(str(file), 3, ["precompute", "r.yaml"])

    options = ["--num_processes", "3"]
    assert commands == [
        ["--config_file", str(file), *options, "-m", "prefopt", "precompute", "r.yaml"]
    ]


@pytest.mark.parametrize(
    ("configuration", "processes", "said"),
    [
        (None, 2, "--processes has no effect without --accelerate"),
        ("zero33", None, "no launch configuration 'zero33'. Did you mean 'zero3'?"),
        ("anything", None, "Or give a YAML file of your own"),
        ("nowhere/mine.yaml", None, "--accelerate: no such file, got nowhere/mine.yaml."),
        ("single", 2, "--processes: the launch configuration is for one process, got 2."),
        ("zero3_multinode", 3, "so many on each of 2 machines, got 3. Give a multiple of 2."),
    ],
)
def test_what_cannot_be_launched_is_one_line(configuration, processes, said, commands):
    with pytest.raises(UserError) as refusal:
        launch.run(configuration, processes, ["train", "r.yaml"])

    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert commands == []


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [", "num_processes: 2\n"])
def test_a_file_that_is_no_launch_configuration_is_one_line(text: str, tmp_path: Path, commands):
    file = tmp_path / "mine.yaml"
    file.write_text(text)

    with pytest.raises(UserError, match=r"^--accelerate: .*mine.yaml") as refusal:
        launch.run(str(file), None, ["train", "r.yaml"])

    assert "\n" not in str(refusal.value)
    assert commands == []


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"])
def test_a_process_that_is_launched_launches_nothing(name: str, commands, monkeypatch):
    monkeypatch.setenv(name, "0")

    with pytest.raises(UserError, match=f"started this process already: {name} is set"):
        launch.run("ddp", None, ["train", "r.yaml"])

    assert commands == []


def options_of(name: str, num_processes: int | None, num_gpus: int, **environment: str):
    values = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    return launch._options(values, num_processes, environment, num_gpus)


def test_every_gpu_gets_a_process_unless_a_number_is_asked_for():
    assert options_of("zero2", None, 8) == {"num_processes": "8"}
    assert options_of("zero2", 3, 8) == {"num_processes": "3"}
    assert options_of("zero2", None, 0) == {}
    assert options_of("single", None, 8) == {}


def test_chosen_gpus_are_counted_by_the_configuration():
    values = {"distributed_type": "MULTI_GPU", "gpu_ids": "0,1", "num_processes": 2}

    assert launch._options(values, None, {}, 8) == {}


def test_a_node_of_a_slurm_job_knows_which_one_it_is():
    job = {"SLURM_NNODES": "4", "SLURM_NODEID": "3", "MASTER_ADDR": "n0", "MASTER_PORT": "29501"}

    assert options_of("zero3_multinode", None, 8, **job) == {
        "num_machines": "4",
        "machine_rank": "3",
        "main_process_ip": "n0",
        "main_process_port": "29501",
        "num_processes": "32",
    }
    # One machine is no node of anything, in whatever job.
    assert options_of("zero3", None, 8, **job) == {"num_processes": "8"}


def test_an_installed_package_brings_the_configurations(tmp_path: Path):
    for part in ("prefopt", "recipes/accelerate", "pyproject.toml", "README.md", "LICENSE"):
        target = tmp_path / "source" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", ROOT / part, target], check=True)
    build = "from setuptools.build_meta import build_wheel; build_wheel('../out')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path / "source", check=True, capture_output=True
    )

    [wheel] = (tmp_path / "out").glob("*.whl")
    with ZipFile(wheel) as files:
        packed = {
            Path(name).stem: files.read(name)
            for name in files.namelist()
            if name.startswith("prefopt/launch/")
        }
    assert packed == {name: (FILES / f"{name}.yaml").read_bytes() for name in NAMES}


def launched(tmp_path: Path, script: str, configuration: str = "single") -> subprocess.Popen[str]:
    """A launcher whose processes run a script in place of prefopt."""
    package = tmp_path / "prefopt_stand_in"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(textwrap.dedent(script))
    code = (
        "import sys; from prefopt.commands.launch import _Launch; "
        f"sys.exit(_Launch().run(['--config_file', {str(FILES / configuration)!r} + '.yaml', "
        "'-m', 'prefopt_stand_in']))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "PET_SIGNALS_TO_HANDLE": "SIGHUP,SIGQUIT",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "code"), [("sys.exit(75)", 75), ("os.kill(os.getpid(), 9)", 137)])
def test_the_launcher_leaves_as_its_process_did(tmp_path: Path, ends: str, code: int):
    process = launched(tmp_path, f"import os, sys\n{ends}")

    _, said = process.communicate(timeout=60)

    assert process.returncode == code, said
    assert ("the process was ended by SIGKILL" in said) == (code == 137)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["single", "ddp"])
def test_the_launcher_passes_signals_on_and_waits(tmp_path: Path, configuration: str):
    # The file says that the process would hear the signal.
    script = """
        import os, pathlib, signal, sys, time
        def leave(*_):
            time.sleep(0.3)
            os._exit(75)
        signal.signal(signal.SIGUSR1, leave)
        (pathlib.Path(__file__).parent / os.environ.get("RANK", "0")).touch()
        time.sleep(60)
    """
    process = launched(tmp_path, script, configuration)
    num_processes = 2 if configuration == "ddp" else 1
    deadline = time.monotonic() + 60
    files = [tmp_path / "prefopt_stand_in" / str(i) for i in range(num_processes)]
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)

    process.send_signal(10)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 75, said


@pytest.mark.slow
def test_a_second_signal_to_the_launcher_ends_all(tmp_path: Path):
    script = """
        import pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (pathlib.Path(__file__).parent / "ready").touch()
        time.sleep(60)
    """
    process = launched(tmp_path, script)
    deadline = time.monotonic() + 60
    while not (tmp_path / "prefopt_stand_in" / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    process.terminate()
    time.sleep(1.5)
    assert process.poll() is None
    began = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=60)

    assert process.returncode == 75, said
    assert time.monotonic() - began < 10
