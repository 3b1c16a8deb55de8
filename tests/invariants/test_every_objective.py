"""No split of a step changes the gradient of any objective: micro-batches, processes, both."""

import json

import pytest
from safetensors.torch import load_file

from tests.invariants.train_every import sections, write_inputs
from tests.support.launch import REPOSITORY, launch

WHOLE_STEP, ONE_GROUP = 100_000, 1


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Of every objective, by how its step was split."""
    folder = tmp_path_factory.mktemp("every")
    write_inputs(folder)
    found = {}
    for mode, budget in (("single", WHOLE_STEP), ("single", ONE_GROUP), ("ddp", ONE_GROUP)):
        output = folder / f"{mode}-{budget}"
        output.mkdir()
        launch(
            mode,
            REPOSITORY / "tests" / "invariants" / "train_every.py",
            output,
            str(budget),
            environment={"PYTHONPATH": str(REPOSITORY)},
            timeout=900,
        )
        facts = json.loads((output / "facts.json").read_text())
        assert facts["num_processes"] == (2 if mode == "ddp" else 1)
        found[mode, budget] = load_file(output / "gradients.safetensors")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sections())
@pytest.mark.parametrize("mode", ["single", "ddp"], ids=["one process", "two processes"])
def test_a_step_one_group_at_a_time_has_the_gradient_of_the_whole(gradients, name, mode):
    whole, split = gradients["single", WHOLE_STEP][name], gradients[mode, ONE_GROUP][name]

    assert whole.norm() > 0
    assert (split - whole).norm() <= 1e-10 * whole.norm()
