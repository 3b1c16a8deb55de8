"""Diagnostics say the same whatever processes and shards they are measured on."""

import json
from functools import cache

import numpy as np
import pytest

from tests.invariants.diagnose_all import RUNS
from tests.support.launch import launch_for_all
from tests.support.tiny import save_tiny_model, write_jsonl, write_pairs

MODES = ["ddp", "zero2", "zero3", "fsdp2"]


def mixed(number):
    """One response, a tie, or a pair, in turn."""
    responses = [f"yes {number}", f"yes or no {number}"][: 1 if number % 3 == 0 else 2]
    scores = [1.0, 1.0 if number % 3 == 1 else 0.0][: len(responses)]
    return {"prompt": f"say {number}", "responses": responses, "scores": scores}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "tied", tie_word_embeddings=True)
    write_pairs(folder / "pairs.jsonl", 20)
    write_jsonl(folder / "mixed.jsonl", [mixed(i) for i in range(20)])

    @cache
    def run(mode):
        output = folder / mode
        launch_for_all(mode, "diagnose_all.py", output)
        grams = {name: {} for name in RUNS}
        for file in sorted(output.glob("grams-*.json")):
            for name, found in json.loads(file.read_text()).items():
                for id_, of_parameter, missing in found:
                    assert missing == []
                    # The first step's: later ones see weights that differ by rounding.
                    grams[name].setdefault(id_, {n: np.array(g) for n, g in of_parameter.items()})
        lines = {
            name: [
                line
                for text in (output / name / "metrics.jsonl").read_text().splitlines()
                if "diagnostics/seconds" in (line := json.loads(text))
            ]
            for name in RUNS
        }
        return grams, lines

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("mode", MODES)
def test_grams_are_those_of_a_single_process(measured, mode, name):
    expected, found = measured("single")[0][name], measured(mode)[0][name]

    assert len(expected) >= 4
    assert found.keys() == expected.keys()
    for id_ in list(expected)[:5]:
        assert found[id_].keys() == expected[id_].keys()
        size = np.sqrt(np.diagonal(sum(expected[id_].values())))
        for parameter, gram in expected[id_].items():
            error = np.abs(found[id_][parameter] - gram)
            assert (error <= 1e-4 * np.outer(size, size)).all(), parameter


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("mode", MODES)
def test_so_is_every_number_that_is_logged(measured, mode, name):
    expected, found = measured("single")[1][name], measured(mode)[1][name]

    # The first step, every second, and the last.
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [1, 2, 4]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() - {"diagnostics/seconds"}:
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=2e-5), key
