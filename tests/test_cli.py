"""The command line: wiring, errors in one line, and `--resume` with and without a value."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import prefopt.commands
from prefopt import __version__
from prefopt.cli import main
from prefopt.errors import UserError
from prefopt.train.signals import Stopped, StopReason

Calls = list[tuple[Any, ...]]


def run(*arguments: str) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What each command was called with; none of them runs."""
    recorded: Calls = []
    names = (
        "train",
        "precompute",
        "validate",
        "plan",
        "diagnose",
        "objectives",
        "demo",
        "merge",
        "schema",
        "convert",
        "cache",
    )
    for name in names:
        parts = {"run": name, "show": "list", "verify": "verify", "prune": "prune"}
        called = {
            part: lambda *given, as_name=name if part == "run" else f"{name} {word}", **named: (
                recorded.append((as_name, *given, *named.values()))
            )
            for part, word in parts.items()
        }
        command = SimpleNamespace(**called)
        monkeypatch.setattr(prefopt.commands, name, command, raising=False)
    return recorded


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise error

    command = SimpleNamespace(run=fail)
    monkeypatch.setattr(prefopt.commands, "objectives", command, raising=False)


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ("train r.yaml", ("train", "r.yaml", [], None, False, False)),
        ("train r.yaml a.b=1 c=2", ("train", "r.yaml", ["a.b=1", "c=2"], None, False, False)),
        ("train r.yaml --overwrite", ("train", "r.yaml", [], None, True, False)),
        ("train r.yaml --resume", ("train", "r.yaml", [], "auto", False, False)),
        ("train r.yaml --resume auto", ("train", "r.yaml", [], "auto", False, False)),
        ("train r.yaml --resume runs/a a=1", ("train", "r.yaml", ["a=1"], "runs/a", False, False)),
        ("train r.yaml --resume=odd=name", ("train", "r.yaml", [], "odd=name", False, False)),
        ("train --resume r.yaml a=1", ("train", "r.yaml", ["a=1"], "auto", False, False)),
        (
            "train r.yaml --resume a=1 --overwrite",
            ("train", "r.yaml", ["a=1"], "auto", True, False),
        ),
        ("train r.yaml --dry-run", ("train", "r.yaml", [], None, False, True)),
        ("validate r.yaml a=1", ("validate", "r.yaml", ["a=1"], 3, False)),
        ("validate r.yaml --show 0 --json", ("validate", "r.yaml", [], 0, True)),
        ("precompute r.yaml a=1", ("precompute", "r.yaml", ["a=1"])),
        ("plan r.yaml a=1", ("plan", "r.yaml", ["a=1"], None, 1, 80.0, 989.4, 0.35, False)),
        (
            "plan r.yaml --gpus 8 --mode ddp",
            ("plan", "r.yaml", [], "ddp", 8, 80.0, 989.4, 0.35, False),
        ),
        ("cache list", ("cache list", None)),
        ("cache list --cache-dir c", ("cache list", "c")),
        ("cache verify", ("cache verify", None)),
        ("cache prune", ("cache prune", [], None, False, None)),
        ("cache prune a b --cache-dir c", ("cache prune", ["a", "b"], None, False, "c")),
        ("cache prune --days 2", ("cache prune", [], 2.0, False, None)),
        ("cache prune --all", ("cache prune", [], None, True, None)),
        (
            "diagnose runs/a",
            ("diagnose", "runs/a", [], [], None, None, 64, 2, 0, False, 0, None),
        ),
        (
            "diagnose m a=1 --data f --data g --objective o --reference r --groups 3 "
            "--token-maps 0 --samples 4 --verify --seed 5 --output here",
            ("diagnose", "m", ["a=1"], ["f", "g"], "o", "r", 3, 0, 4, True, 5, "here"),
        ),
        ("objectives", ("objectives", [], False)),
        ("objectives some other --json", ("objectives", ["some", "other"], True)),
        ("demo --output here --seed 7", ("demo", "here", 7)),
        ("merge runs/a merged", ("merge", "runs/a", "merged", False)),
        ("merge a b --trust-remote-code", ("merge", "a", "b", True)),
        ("schema", ("schema", None)),
        ("schema --output s.json", ("schema", "s.json")),
        ("convert t.yaml", ("convert", "t.yaml", None, None, [], None, False)),
        (
            "convert t.yaml --trainer kto --processes 2 --skip a --skip b.c --output r --overwrite",
            ("convert", "t.yaml", "kto", 2, ["a", "b.c"], "r", True),
        ),
    ],
)
def test_arguments_reach_the_command(arguments: str, call: tuple[Any, ...], calls: Calls):
    assert run(*arguments.split()) == 0

    assert [tuple(as_text(value) for value in made) for made in calls] == [call]


def as_text(value: Any) -> Any:
    return str(value) if hasattr(value, "parts") else value


def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fail_with(UserError("objective.beta should be greater than 0, got -1."), monkeypatch)

    assert run("objectives") == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: objective.beta should be greater than 0, got -1.\n"


def test_an_error_of_another_process_alone_names_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fail_with(UserError("anything"), monkeypatch)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("prefopt.cli_group.SECONDS_FOR_FIRST", 0.0)

    assert run("objectives") == 2

    assert capsys.readouterr().err == "error (process 3): anything\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    fail_with(ZeroDivisionError("ours"), monkeypatch)

    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["objectives"])


def test_ctrl_c_says_so_and_exits_as_a_shell_expects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fail_with(KeyboardInterrupt(), monkeypatch)

    assert run("objectives") == 130

    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize(
    ("reason", "code"),
    [(StopReason.SIGNAL, 75), (StopReason.TIME_LIMIT, 75), (StopReason.INTERRUPT, 130)],
)
def test_a_stopped_command_says_so_and_leaves_with_a_code_of_its_own(
    reason: StopReason,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    fail_with(Stopped(reason, "after step 3.", has_saved=True), monkeypatch)

    assert run("objectives") == code

    assert capsys.readouterr().err == f"Stopped after step 3. Exit code {code}.\n"


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (
            "train --accelerate zero3 r.yaml a.b=1 --resume",
            ("zero3", None, ["train", "r.yaml", "a.b=1", "--resume", "auto"]),
        ),
        (
            "train r.yaml --accelerate my/own.yaml --processes 4 --overwrite",
            ("my/own.yaml", 4, ["train", "r.yaml", "--overwrite"]),
        ),
        ("train r.yaml --processes 4", (None, 4, ["train", "r.yaml"])),
        (
            "precompute r.yaml a=1 --accelerate ddp --processes 2",
            ("ddp", 2, ["precompute", "r.yaml", "a=1"]),
        ),
    ],
)
def test_a_launch_gets_the_arguments_and_gives_its_exit_code(
    arguments: str, call: tuple[Any, ...], calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    launches: Calls = []
    command = SimpleNamespace(run=lambda *given: launches.append(given) or 75)
    monkeypatch.setattr(prefopt.commands, "launch", command, raising=False)

    assert run(*arguments.split()) == 75

    assert launches == [call]
    assert calls == []


def test_a_launch_of_no_process_is_refused(calls: Calls, capsys: pytest.CaptureFixture[str]):
    assert run("train", "r.yaml", "--accelerate", "ddp", "--processes", "0") == 2

    assert "--processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train", "precompute", "validate", "plan", "diagnose", "merge", "convert"]
)
def test_a_missing_argument_is_a_usage_error(
    command: str, calls: Calls, capsys: pytest.CaptureFixture[str]
):
    assert run(command) == 2

    assert "Missing argument" in capsys.readouterr().err
    assert calls == []


COMMANDS = ["train", "precompute", "validate", "plan", "diagnose", "objectives", "demo", "merge"]
COMMANDS += ["schema", "convert"]


@pytest.mark.parametrize("command", [*COMMANDS, "cache list", "cache verify", "cache prune"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    assert run(*command.split(), "--help") == 0

    assert f"prefopt {command} [OPTIONS]" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert run("--version") == 0

    assert capsys.readouterr().out == f"prefopt {__version__}\n"


def test_the_package_is_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "prefopt", "train", "no_such_recipe.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert result.stderr.startswith("error: no_such_recipe.yaml")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_two_processes_print_one_line():
    launch = "-m torch.distributed.run --nproc_per_node 2 --master_port 0"
    result = subprocess.run(
        [sys.executable, *f"{launch} -m prefopt objectives no_such_objective".split()],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode != 0
    assert result.stderr.count("no objective 'no_such_objective'") == 1


@pytest.mark.parametrize(
    ("words", "expected"), [("prefopt tr", "train"), ("prefopt cache ver", "verify")]
)
def test_a_shell_completes_commands(words: str, expected: str):
    env = {
        **os.environ,
        "_PREFOPT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    program = "from prefopt.cli import main; main()"

    completed = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )

    assert completed.stdout.split() == [expected]
