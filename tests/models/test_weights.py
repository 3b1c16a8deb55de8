"""The digest of weights: by content, whatever they are called and wherever they lie."""

import json
import os
import shutil
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import hub

from prefopt.errors import UserError
from prefopt.models import weights
from prefopt.models.weights import weights_digest
from tests.support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def digest(tmp_path):
    return lambda path: weights_digest(str(path), "model.path", memo=tmp_path / "memo")


def test_a_copy_elsewhere_is_the_same(model, digest, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")

    assert digest(copy) == digest(model)


def test_one_changed_weight_is_another_model(model, digest):
    before = digest(model)
    tensors = load_file(model / "model.safetensors")
    first = sorted(tensors)[0]
    tensors[first].view(-1)[0] += 1e-3

    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    assert digest(model) != before


def test_the_configuration_and_python_code_count(model, digest):
    digests = [digest(model)]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    digests.append(digest(model))
    (model / "modeling_own.py").write_text("pass")
    digests.append(digest(model))

    assert len(set(digests)) == 3


def test_tokenizer_card_and_training_state_do_not_count(model, digest):
    before = digest(model)
    (model / "README.md").write_text("# About")
    (model / "tokenizer_config.json").write_text("{}")
    (model / "training_args.bin").write_bytes(b"1")
    (model / "checkpoint-1").mkdir()
    (model / "checkpoint-1" / "model.safetensors").write_bytes(b"1")

    assert digest(model) == before


def test_weights_of_the_old_format_count_where_there_are_no_others(model, digest):
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(3)}, model / "pytorch_model.bin")
    before = digest(model)
    torch.save({"a": torch.ones(3)}, model / "pytorch_model.bin")

    assert digest(model) != before


def test_every_file_of_sharded_weights_counts(model, digest):
    save_file({"a": torch.zeros(3)}, model / "model-00002-of-00002.safetensors")
    before = digest(model)
    save_file({"a": torch.ones(3)}, model / "model-00002-of-00002.safetensors")

    assert digest(model) != before


def test_a_file_is_read_once_until_something_about_it_changes(model, digest, monkeypatch):
    monkeypatch.setattr(weights, "_TICK_NS", 0)
    with patch.object(weights, "_hash", wraps=weights._hash) as read:
        before = digest(model)
        num_files = read.call_count
        assert digest(model) == before
        assert read.call_count == num_files
        # The same size and time of change, as a copy that keeps times leaves them.
        file = model / "model.safetensors"
        status, content = file.stat(), bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

        assert digest(model) != before
        assert read.call_count == num_files + 1


def test_a_file_that_changed_a_moment_ago_is_read_again(model, digest):
    with patch.object(weights, "_hash", wraps=weights._hash) as read:
        digest(model)
        num_files = read.call_count
        digest(model)

    assert read.call_count == 2 * num_files


def test_a_model_of_the_hub_is_its_snapshot(model, digest, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(model, repository / "snapshots" / "abc")

    assert digest("someone/tiny") == digest(model)


@pytest.mark.parametrize("path", ["empty", "someone/unknown"])
def test_without_weights_there_is_one_line(digest, tmp_path, monkeypatch, path):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    with pytest.raises(UserError, match=r"^model\.path: .* holds no file of weights .*off\.$"):
        digest(path)
