"""wandb and tensorboard get every metric name that metrics.jsonl has."""

import json
import struct

import pytest
import yaml

from tests.support.launch import run
from tests.support.tiny import save_tiny_model, write_lists


@pytest.fixture
def recipe(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_lists(tmp_path / "lists.jsonl", 12)
    sections = {
        "model": {"path": str(tmp_path / "model")},
        "data": {
            "sources": [{"path": str(tmp_path / "lists.jsonl")}],
            "evaluation": {"num_groups": 3},
            "cache_dir": str(tmp_path / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "logging_steps": 1,
            "groups_per_step": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "report_to": ["wandb", "tensorboard"],
        },
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections))
    return file


def _records(data):
    """Records of a .wandb file: a header of 7 bytes, then LevelDB's log format in 32 KiB blocks."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if left_in_block < 7 or kind == 0:
            position += left_in_block
            continue
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def _wandb_keys(folder):
    """Names in the history records of an offline run."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    keys = set()
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        keys |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    return keys


def _tensorboard_keys(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])


@pytest.mark.slow
def test_trackers_find_every_metric_name(recipe, tmp_path):
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "events"),
    }

    done = run("-m", "prefopt", "train", recipe, environment=environment)

    assert done.returncode == 0, done.stderr
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    names = {name for line in lines for name in line} - {"step"}
    assert {"loss", "rewards/chosen", "rewards/margins", "logps/rejected", "eval_loss"} <= names
    expected = {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
        for name in names
    }
    finals = {"train/train_runtime", "train/train_loss", "train/total_flos"}
    finals |= {"train/train_samples_per_second", "train/train_steps_per_second"}
    assert expected - finals <= _wandb_keys(tmp_path)
    assert expected <= _tensorboard_keys(tmp_path / "events")
