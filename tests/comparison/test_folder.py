import os
import subprocess
import sys

import pytest

from prefopt.comparison import folder as folder_module
from prefopt.comparison.folder import alone_in
from prefopt.errors import UserError


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(folder_module, "_PATIENCE", 0.0)


def test_a_second_command_in_the_same_folder_is_refused_and_one_after_it_is_not(tmp_path):
    folder = tmp_path / "out"

    with (
        alone_in(folder),
        pytest.raises(UserError, match="out is at work: another prefopt compare"),
        alone_in(folder),
    ):
        raise AssertionError
    with alone_in(folder):
        assert folder.is_dir()


def test_a_run_that_outlives_its_comparison_keeps_others_out(tmp_path):
    words = [sys.executable, "-c", "input()"]
    with alone_in(tmp_path) as lock:
        run = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=(lock,))

    try:
        with pytest.raises(UserError, match="a run that it started"), alone_in(tmp_path):
            raise AssertionError
    finally:
        run.communicate(os.linesep.encode())
    with alone_in(tmp_path):
        pass


def test_a_file_is_no_folder_of_a_comparison(tmp_path):
    (tmp_path / "out").write_text("", encoding="utf-8")

    with (
        pytest.raises(UserError, match=r"^output_dir: .*out: File exists\."),
        alone_in(tmp_path / "out"),
    ):
        raise AssertionError
