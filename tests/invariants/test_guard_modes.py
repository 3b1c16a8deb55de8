"""In every mode, a step that is not finite changes nothing, on no process."""

import json
import math
import random
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.guard_all import GROUPS_PER_STEP, HUGE_SCORE, LAST_STEP, SKIPPED_STEP
from tests.support.launch import launch_for_all
from tests.support.tiny import random_text, save_tiny_model, write_jsonl

MODES = ["ddp", "zero2", "zero3", "fsdp2"]
RUNS = ["loss_then_gradient", "gradient_then_loss"]


def _rows_of(step):
    return range((step - 1) * GROUPS_PER_STEP, step * GROUPS_PER_STEP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and data whose rows are the steps in order; in two files one row explodes."""
    folder = tmp_path_factory.mktemp("guard")
    save_tiny_model(folder / "model")
    generator = random.Random(0)
    rows = [
        {
            "prompt": random_text(generator, 3, 12),
            "responses": [random_text(generator, 2, 12) for _ in range(2)],
            "scores": [1, 0],
        }
        for _ in range(LAST_STEP * GROUPS_PER_STEP)
    ]
    for name, step in zip(RUNS, (SKIPPED_STEP, LAST_STEP), strict=True):
        exploding = _rows_of(step)[2]
        data = [
            {**row, "scores": [HUGE_SCORE, 0]} if i == exploding else row
            for i, row in enumerate(rows)
        ]
        write_jsonl(folder / f"{name}.jsonl", data)
    bad = [*_rows_of(SKIPPED_STEP), *_rows_of(LAST_STEP)]
    good = [row for i, row in enumerate(rows) if i not in bad]
    write_jsonl(folder / "without_either.jsonl", good)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    @cache
    def run(mode):
        output = folder / mode
        launch_for_all(mode, "guard_all.py", output)
        return output, json.loads((output / "facts.json").read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("mode", MODES)
def test_one_bad_step_is_left_out_and_the_next_one_stops_every_process(trained, mode, run):
    _, facts = trained(mode)

    assert facts[run]["skipped"] == [1, 1]
    assert facts[run]["steps"] == LAST_STEP - 1
    what = "the gradient norm is" if run.endswith("gradient") else "the loss is not finite, by"
    for error in facts[run]["errors"]:
        assert error.startswith(f"step {LAST_STEP}: {what}")
        assert "Steps left out before: 1." in error


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("mode", MODES)
def test_the_weights_are_those_of_a_run_whose_data_lacks_both_steps(trained, mode, run):
    output, facts = trained(mode)

    assert facts["without_either"] == {"errors": ["", ""], "steps": 3, "skipped": [0, 0]}
    expected = load_file(output / "without_either.safetensors")
    found = load_file(output / f"{run}.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("mode", MODES)
def test_both_steps_are_written_down_with_the_groups_of_all_processes(trained, mode, run):
    output, _ = trained(mode)

    for step in (SKIPPED_STEP, LAST_STEP):
        text = (output / run / f"non_finite-step-{step}.json").read_text()
        dump = json.loads(text, parse_constant=pytest.fail)
        assert dump["step"] == step
        records = sorted(group["record"] for group in dump["groups"])
        assert records == sorted(f"{run}.jsonl:{i + 1}" for i in _rows_of(step))
        assert {group["process"] for group in dump["groups"]} == {0, 1}
        is_loss = (step == SKIPPED_STEP) == run.startswith("loss")
        bad = [group["record"] for group in dump["groups"] if group["loss"] == "NaN"]
        assert bad == ([f"{run}.jsonl:{_rows_of(step)[2] + 1}"] if is_loss else [])
        logps = [each["policy_logp"] for group in dump["groups"] for each in group["responses"]]
        assert len(logps) == 2 * GROUPS_PER_STEP
        assert all(logp < 0 and math.isfinite(logp) for logp in logps)
