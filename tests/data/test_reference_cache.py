"""Pieces of reference log-probs: whole or absent, checked, mapped, keyed by what they depend on."""

import errno
import os
import pickle
import random
from unittest.mock import patch

import numpy as np
import pytest
import torch

from prefopt.data.collate import collate
from prefopt.data.reference_cache import (
    RECORDS_PER_PIECE,
    About,
    ReferenceColumn,
    ReferenceFolder,
    read_about,
    reference_folder,
    tokens_digest,
)
from prefopt.errors import UserError
from tests.data.builders import prepare
from tests.support.tiny import random_text

ABOUT = About(facts={}, num_records=3, num_tokens=9, model="m", source="s", made="2026-01-01")
# Responses of 2 and 3 tokens, of 4, and of 2, 2 and 2: with the end 15 tokens in all.
ROWS = [
    {"prompt": "p", "responses": ["a", "bc"], "scores": [1.0, 0.0]},
    {"prompt": "q", "responses": ["def"], "scores": [1.0]},
    {"prompt": "r", "responses": ["g", "h", "i"], "scores": [2.0, 1.0, 0.0]},
]
NUM_TOKENS = 15
HEADER_BYTES = 48


@pytest.fixture
def data(tmp_path):
    return prepare(tmp_path, ROWS)


@pytest.fixture
def folder(tmp_path):
    folder = reference_folder(tmp_path / "cache", {"weights": "w"}, len(ROWS))
    folder.begin(ABOUT)
    return folder


def column_of(folder, data):
    folder.write(0, -np.arange(NUM_TOKENS, dtype=np.float32))
    return ReferenceColumn(folder, data.train.shards[0])


def test_a_record_gets_the_log_probs_of_its_own_tokens(folder, data):
    store = data.train.with_reference([column_of(folder, data)])

    assert [logps.tolist() for logps in store[0].reference_logps] == [[0, -1], [-2, -3, -4]]
    assert [logps.tolist() for logps in store[1].reference_logps] == [[-5, -6, -7, -8]]
    backwards = store.subset([2, 0])
    assert [logps.tolist() for logps in backwards[0].reference_logps] == [
        [-9, -10],
        [-11, -12],
        [-13, -14],
    ]
    batch = collate([backwards[0], backwards[1]])
    assert batch.reference_logps.tolist() == [-9, -10, -11, -12, -13, -14, 0, -1, -2, -3, -4]
    assert batch.reference_logps.dtype == torch.float32


def test_without_log_probs_there_are_none(data):
    assert data.train[0].reference_logps is None
    assert collate([data.train[0]]).reference_logps is None


def test_many_pieces_are_read_without_keeping_a_file_open_for_each(tmp_path):
    generator = random.Random(0)
    num = 2 * RECORDS_PER_PIECE + 5
    rows = [
        {"prompt": "p", "responses": [random_text(generator, 1, 9)], "scores": [1.0]}
        for _ in range(num)
    ]
    shard = prepare(tmp_path, rows).train.shards[0]
    lengths = shard.column("response_length")
    # Record number r has the log-probs r, r, ..., r.
    logps = np.repeat(np.arange(num, dtype=np.float32), lengths)
    folder = ReferenceFolder(tmp_path / "reference", num)
    folder.begin(ABOUT)
    starts = np.cumsum([0, *lengths])
    for piece in folder.pieces:
        records = folder.records_of(piece)
        folder.write(piece, logps[starts[records.start] : starts[records.stop]])
    open_before = len(os.listdir("/proc/self/fd"))

    column = ReferenceColumn(folder, shard)

    assert len(os.listdir("/proc/self/fd")) == open_before
    assert folder.num_pieces == 3
    for number in (0, 511, 512, 1023, 1024, num - 1):
        assert column.of_record(number).tolist() == [number] * lengths[number]


def test_another_process_maps_the_files_itself(folder, data):
    column = column_of(folder, data)

    content = pickle.dumps(column)

    assert b"piece" not in content
    assert torch.equal(pickle.loads(content).of_record(1), column.of_record(1))


def test_what_is_mapped_outlives_its_files(folder, data):
    column = column_of(folder, data)

    folder.path(0).unlink()

    assert column.of_record(1).tolist() == [-5, -6, -7, -8]


def _cut(path):
    os.truncate(path, path.stat().st_size - 1)


def _cut_in_the_header(path):
    os.truncate(path, HEADER_BYTES - 1)


def _empty(path):
    os.truncate(path, 0)


def _longer(path):
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


@pytest.mark.parametrize("harm", [_cut, _cut_in_the_header, _empty, _longer])
def test_a_piece_of_another_size_is_broken(folder, harm):
    folder.write(0, np.zeros(9, np.float32))
    assert folder.states() == ["whole"]

    harm(folder.path(0))

    assert folder.states() == ["broken"]


@pytest.mark.parametrize("byte", range(HEADER_BYTES + 8))
def test_a_flipped_byte_anywhere_is_seen(folder, byte):
    folder.write(0, np.zeros(2, np.float32))
    content = bytearray(folder.path(0).read_bytes())
    content[byte] ^= 1

    folder.path(0).write_bytes(content)

    assert folder.state(0) == "broken"


def test_a_piece_under_the_name_of_another_is_broken(tmp_path):
    folder = ReferenceFolder(tmp_path / "reference", 2 * RECORDS_PER_PIECE)
    folder.begin(ABOUT)
    folder.write(0, np.zeros(9, np.float32))

    folder.path(0).rename(folder.path(1))

    assert folder.states() == ["missing", "broken"]


def test_what_a_killed_process_left_is_removed_and_pieces_stay(folder):
    folder.write(0, np.zeros(9, np.float32))
    (folder.folder / ".piece-000001.bin.4711.partial").write_bytes(b"half")

    folder.begin(ABOUT)

    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "about.json",
        "piece-000000.bin",
    ]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(folder):
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        patch("prefopt.data.reference_cache.os.fsync", side_effect=full),
        pytest.raises(UserError, match=r"no space left on the disk\. Free some, or set data"),
    ):
        folder.write(0, np.zeros(9, np.float32))

    assert [path.name for path in folder.folder.iterdir()] == ["about.json"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    folder = reference_folder(tmp_path / "file", {}, 1)

    with pytest.raises(UserError, match=r"the cache cannot be written .*Set data\.cache_dir"):
        folder.lock()


def test_the_folder_says_what_it_holds(folder):
    assert read_about(folder.folder) == ABOUT
    (folder.folder / "about.json").write_text("{")
    assert read_about(folder.folder) is None


def test_every_fact_has_a_folder_of_its_own(tmp_path):
    facts = {"weights": "w", "dtype": "float32"}

    def name(facts):
        return reference_folder(tmp_path, facts, 1).folder

    assert name(facts) == name(dict(reversed(facts.items())))
    assert len({name(facts), name({**facts, "weights": "v"}), name({**facts, "more": ""})}) == 3


def test_the_digest_of_tokens_knows_no_scores(tmp_path):
    def digest(rows=ROWS, **options):
        return tokens_digest(prepare(tmp_path, rows, **options).train.shards[0])

    flipped = [{**row, "scores": row["scores"][::-1]} for row in ROWS]
    assert digest() == digest(scores="minmax") == digest(scores="rank") == digest(flipped)
    assert digest() != digest(max_length=4)
    assert digest() != digest(ROWS[::-1])
    # The same tokens in a row, but another border between prompt and response.
    one, other = {"prompt": "pa", "responses": ["b"]}, {"prompt": "p", "responses": ["ab"]}
    assert digest([{**one, "scores": [1.0]}]) != digest([{**other, "scores": [1.0]}])
