"""No split of a step changes the gradient of any objective: micro-batches, processes, both."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors.torch import load_file

from tests.invariants.train_every import sections, write_inputs
from tests.support.launch import REPOSITORY, launch

# Launcher, tokens per micro-batch and layout; a budget of 1 is one response at a time.
SPLITS = [
    ("single", 100_000, "padded"),
    ("single", 1, "padded"),
    ("ddp", 1, "padded"),
    ("ddp", 40, "shared"),
]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Of every objective, by how its step was split."""
    folder = tmp_path_factory.mktemp("every")
    write_inputs(folder)

    def gradients_of(split):
        mode, budget, layout = split
        output = folder / f"{mode}-{budget}-{layout}"
        output.mkdir()
        launch(
            mode,
            REPOSITORY / "tests" / "invariants" / "train_every.py",
            output,
            str(budget),
            layout,
            environment={"PYTHONPATH": str(REPOSITORY)},
            timeout=900,
        )
        facts = json.loads((output / "facts.json").read_text())
        assert facts["num_processes"] == (2 if mode == "ddp" else 1)
        return load_file(output / "gradients.safetensors")

    # Two single processes have a core each.
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(SPLITS[:2], pool.map(gradients_of, SPLITS[:2]), strict=True))
    return found | {split: gradients_of(split) for split in SPLITS[2:]}


@pytest.mark.slow
@pytest.mark.parametrize("name", sections())
@pytest.mark.parametrize("split", SPLITS[1:], ids=["one process", "two processes", "shared rows"])
def test_a_step_one_response_at_a_time_has_the_gradient_of_the_whole(gradients, name, split):
    whole, ours = gradients[SPLITS[0]][name], gradients[split][name]

    assert whole.norm() > 0
    # The model's norms are in float32, and a prompt that is shared goes through them in sum.
    tolerance = 1e-10 if split[2] == "padded" else 1e-5
    assert (ours - whole).norm() <= tolerance * whole.norm()
