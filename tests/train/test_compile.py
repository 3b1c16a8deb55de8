"""Compiled layers learn what plain ones learn, and are refused where they would not work."""

import pytest
import torch

from prefopt.errors import UserError
from tests.support.runs import LORA, logged, policy, run, snapshot
from tests.support.tiny import save_tiny_model, write_pairs

TRAINING = {"torch_compile": True}


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 8)
    return tmp_path


@pytest.mark.slow
# The compiler's own code, not ours, warns.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("adapter", [{}, {"adapter": LORA}], ids=["full", "lora"])
def test_compiled_layers_learn_the_same(folder, layout, adapter):
    sections = {"model": {"layout": layout}, "diagnostics": {"groups": 2}, **adapter}
    # Adam would make a whole step of the rounding of a gradient near 0.
    sgd = {"optim": "sgd", "learning_rate": 0.1}
    plain = run(folder, "plain", **sections, training=sgd)
    # Layers of one class share compiled code, also with what an earlier test compiled.
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()

    ours = run(folder, "compiled", **sections, training={**sgd, **TRAINING})

    assert counters["stats"]["unique_graphs"] > 0
    assert (logged(ours, "loss")[1] - logged(ours, "loss")[0]) != 0
    assert logged(ours, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-5)
    for key in ("diagnostics/cosine", "diagnostics/gradient_norm/chosen"):
        assert logged(ours, key) == pytest.approx(logged(plain, key), rel=1e-4)
    theirs = snapshot(policy(plain))
    for name, value in policy(ours).named_parameters():
        torch.testing.assert_close(value.data, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sections", "environment", "message"),
    [
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "does not go with DeepSpeed or FSDP here"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "does not go with DeepSpeed or FSDP here"),
        (
            {"training": {"gradient_checkpointing": True}},
            {},
            "does not go with gradient_checkpointing",
        ),
        (
            {"model": {"quantization": "nf4"}, "adapter": LORA},
            {},
            "does not go with model.quantization",
        ),
    ],
)
def test_it_is_refused_where_weights_are_not_there_as_they_are(
    folder, monkeypatch, sections, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises((UserError, ValueError), match=f"training.torch_compile {message}"):
        run(folder, **{**sections, "training": {**TRAINING, **sections.get("training", {})}})
