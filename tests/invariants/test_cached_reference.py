"""The cache gives what the live reference gives, whatever processes and shards it is made on."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest
import yaml

from prefopt.data.reference_cache import ReferenceFolder, read_about
from tests.invariants.test_modes import _logged, _relative, _weights
from tests.invariants.train_cached import ADAPTERS
from tests.support.launch import REPOSITORY, launch, launch_for_all
from tests.support.runs import LORA, run
from tests.support.tiny import save_tiny_model, write_pairs

MODES = ["single", "ddp", "zero3", "fsdp2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 41)
    run(folder, "started", adapter=LORA, training={"learning_rate": 1e-2})
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    @cache
    def run(mode):
        output = folder / mode
        said = launch_for_all(mode, "train_cached.py", output)
        lines = [line for line in said.splitlines() if line.startswith("reference:")]
        return output, lines

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_the_same_with_the_cache(trained, mode, kind):
    output, _ = trained(mode)
    live, cached = output / f"{kind}-off", output / f"{kind}-auto"

    losses = _logged(live, ".", "loss")
    assert len(losses) == 8
    assert _logged(cached, ".", "loss") == pytest.approx(losses, rel=1e-6)
    assert _logged(cached, ".", "eval_loss") == pytest.approx(
        _logged(live, ".", "eval_loss"), rel=1e-6
    )
    assert _relative(_weights(cached) - _weights(live), _weights(live)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_computes_once_and_then_never_again(trained, mode):
    output, lines = trained(mode)

    off = "reference: live (reference.cache: off)"
    computed = "reference: computing log-probs of 41 records once"
    known = "reference: 41 records from the cache"
    # A full run and a new adapter have the same reference, a run that goes on has another one.
    assert lines == [off, computed, known, off, known, known, off, computed, known]
    for rank in range(1 if mode == "single" else 2):
        facts = json.loads((output / f"facts-{rank}.json").read_text())
        for kind in ADAPTERS:
            assert facts[f"{kind}-off"]["reference"] in ("FrozenCopy", "StartOfAdapter")
            assert facts[f"{kind}-again"]["reference"] == "CachedReference"
            # 8 records of two short responses, once: the look before training starts.
            assert facts[f"{kind}-again"]["passes"] == facts["lora-auto"]["passes"] <= 4
            assert facts[f"{kind}-off"]["passes"] >= 8
        expected = {"single": "NO", "ddp": "MULTI_CPU", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}
        assert facts["full-auto"]["type"].endswith(expected[mode])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero3", "fsdp2"])
def test_in_float32_all_modes_share_one_cache(trained, mode):
    folders = [trained(each)[0] / "cache" / "reference" for each in ("single", mode)]
    names = [sorted(path.parent.name for path in f.glob("*/about.json")) for f in folders]

    assert names[0] == names[1]
    for name in names[0]:
        alone, together = (_stored(folder / name) for folder in folders)
        assert np.abs(alone - together).max() < 1e-5


def _stored(folder):
    entry = ReferenceFolder(folder, read_about(folder).num_records)
    files = sorted(folder.glob("piece-*.bin"))
    assert len(files) == 6
    assert entry.num_records == 41
    return np.concatenate([np.fromfile(file, np.float32, offset=48) for file in files])


def _recipe(folder, num_records, **changes):
    write_pairs(folder / "many.jsonl", num_records)
    file = folder / "recipe.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "model": {"path": str(folder / "model")},
                "data": {
                    "sources": [{"path": str(folder / "many.jsonl")}],
                    "cache_dir": str(folder / "cache"),
                },
                "objective": {"name": "dpo"},
                "training": {"output_dir": str(folder / "run"), **changes},
            }
        )
    )
    return file


def _precompute(recipe):
    return subprocess.Popen(
        [sys.executable, "-m", "prefopt", "precompute", str(recipe)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _lines(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return [line for line in out.splitlines() if line.startswith("reference:")]


@pytest.mark.slow
def test_a_killed_precompute_goes_on_where_it_stopped(tmp_path):
    save_tiny_model(tmp_path / "model")
    recipe = _recipe(tmp_path, 3000, tokens_per_micro_batch=200)
    process = _precompute(recipe)
    deadline = time.monotonic() + 200
    while not (done := list(tmp_path.glob("cache/reference/*/piece-000001.bin"))):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    folder = done[0].parent
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("piece-*.bin")}
    assert 2 <= len(finished) < 6

    lines = _lines(_precompute(recipe))

    known = 512 * len(finished)
    assert lines[0] == (
        f"reference: {known:,} records from the cache, "
        f"computing log-probs of {3000 - known:,} records once"
    )
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    assert ReferenceFolder(folder, 3000).states() == ["whole"] * 6
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_two_at_once_compute_everything_once(tmp_path):
    save_tiny_model(tmp_path / "model")
    recipe = _recipe(tmp_path, 3000, tokens_per_micro_batch=200)

    both = [_precompute(recipe) for _ in range(2)]
    lines = [_lines(process) for process in both]

    waiting = "reference: waiting for another run that computes the same log-probs"
    assert sum(waiting in each for each in lines) == 1
    (folder,) = {path.parent for path in tmp_path.glob("cache/reference/*/about.json")}
    assert ReferenceFolder(folder, 3000).states() == ["whole"] * 6
    assert all("reference: 3,000 records with" in each[-2] for each in lines)


@pytest.mark.slow
def test_precompute_on_two_processes_is_what_training_then_uses(tmp_path):
    save_tiny_model(tmp_path / "model")
    recipe = _recipe(tmp_path, 40, groups_per_step=4, max_steps=1, tokens_per_micro_batch=200)

    said = launch("ddp", "-m", "prefopt", "precompute", recipe)

    assert said.count("computing log-probs of 40 records once") == 1
    assert not (tmp_path / "run").exists()
    said = launch("ddp", "-m", "prefopt", "train", recipe)
    assert "reference: 40 records from the cache" in said
