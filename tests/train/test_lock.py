"""Only one process at a time trains in a folder, and a dead one holds nothing."""

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from prefopt.errors import UserError
from prefopt.train.lock import LOCK_FILE, check_not_held, held

HOLDER = """
import sys, time
from pathlib import Path
from prefopt.train.lock import held
with held(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the folder."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.usefixtures("holder")
def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path):
    for_now = f"another process trains in {tmp_path} now"

    with pytest.raises(UserError, match=for_now):
        check_not_held(tmp_path)
    with pytest.raises(UserError, match=for_now), held(tmp_path, print):
        pass
    assert (tmp_path / LOCK_FILE).is_file()


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]):
    holder.send_signal(signal.SIGKILL)
    holder.wait()

    assert (tmp_path / LOCK_FILE).is_file()
    check_not_held(tmp_path)
    with held(tmp_path, print):
        pass


def test_nothing_is_left_where_a_block_has_ended_or_failed(tmp_path: Path):
    with held(tmp_path, print):
        assert (tmp_path / LOCK_FILE).is_file()
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(KeyboardInterrupt), held(tmp_path, print):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_trained_on(tmp_path: Path):
    said: list[str] = []

    no_locks = patch("fcntl.lockf", side_effect=OSError(errno.ENOLCK, "No locks available"))
    with no_locks, held(tmp_path, said.append):
        check_not_held(tmp_path)

    assert said == [
        f"{tmp_path} has no file locks: nothing keeps a second process from training there"
    ]
