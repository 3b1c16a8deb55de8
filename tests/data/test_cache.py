import errno

import pytest

from prefopt.data.cache import build_once
from prefopt.errors import UserError


def test_a_folder_is_built_once(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "content").write_text("whole")

    for _ in range(2):
        folder = build_once(tmp_path / "cache" / "key", build)

    assert len(calls) == 1
    assert (folder / "content").read_text() == "whole"


def test_a_build_that_fails_leaves_no_folder_and_can_be_tried_again(tmp_path):
    def fail(folder):
        (folder / "content").write_text("half")
        raise UserError("rows.jsonl:3: no")

    with pytest.raises(UserError, match=r"rows.jsonl:3: no"):
        build_once(tmp_path / "key", fail)

    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    assert build_once(tmp_path / "key", lambda folder: None).is_dir()


def test_what_a_killed_process_left_is_not_taken_for_whole(tmp_path):
    (tmp_path / "key.partial").mkdir()
    (tmp_path / "key.partial" / "content").write_text("half")

    folder = build_once(tmp_path / "key", lambda folder: None)

    assert list(folder.iterdir()) == []


def test_a_full_disk_is_one_line_with_the_way_out(tmp_path):
    def fill(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"no space left on the disk. Free some, or set data.cache"):
        build_once(tmp_path / "key", fill)

    assert not (tmp_path / "key").exists()
    assert not (tmp_path / "key.partial").exists()
