"""How a step is split over micro-batches, processes and shards never changes what is learned."""

import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.train_all import ADAPTERS, OBJECTIVES, write_inputs
from tests.support.launch import REPOSITORY, launch, partitioning_zero_3

TRAINED = {"float32": list(OBJECTIVES), "float64": ["dpo", "all_traits"]}
RUNS = {
    dtype: [f"{objective}-{kind}" for objective in objectives for kind in ADAPTERS]
    for dtype, objectives in TRAINED.items()
}
SHARDED = ["zero1", "zero2", "zero3", "fsdp2"]
# No pair of the data is larger than 40 tokens: a larger one would go through the model in pieces.
WHOLE_STEP, SOME_GROUPS, ONE_GROUP = 100_000, 100, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    @cache
    def run(mode, dtype, tokens_per_micro_batch):
        output = folder / f"{mode}-{dtype}-{tokens_per_micro_batch}"
        output.mkdir()
        configuration = partitioning_zero_3(folder) if mode == "zero3" else None
        script = REPOSITORY / "tests" / "invariants" / "train_all.py"
        launch(
            mode,
            script,
            output,
            dtype,
            str(tokens_per_micro_batch),
            *TRAINED[dtype],
            configuration=configuration,
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
        return output

    return run


def _facts(output, run):
    return json.loads((output / "facts.json").read_text())[run]


def _logged(output, run, key):
    lines = (output / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[key] for line in lines if key in json.loads(line)]


def _weights(folder, part=""):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file if file.exists() else folder / "model.safetensors")
    names = sorted(name for name in tensors if part in name)
    return torch.cat([tensors[name].double().flatten() for name in names])


def _relative(difference, size):
    return (torch.linalg.norm(difference) / torch.linalg.norm(size)).item()


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS["float64"])
@pytest.mark.parametrize(
    ("mode", "tokens"), [("single", ONE_GROUP), ("ddp", SOME_GROUPS), ("fsdp2", SOME_GROUPS)]
)
def test_in_float64_every_split_gives_the_same_parameters(trained, mode, tokens, run):
    whole = trained("single", "float64", WHOLE_STEP)

    other = trained(mode, "float64", tokens)

    assert _relative(_weights(other / run) - _weights(whole / run), _weights(whole / run)) < 1e-10
    assert _logged(other, run, "loss") == pytest.approx(_logged(whole, run, "loss"), rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS["float32"])
@pytest.mark.parametrize("mode", ["ddp", *SHARDED])
def test_in_float32_every_mode_learns_the_same(folder, trained, mode, run):
    single = trained("single", "float32", WHOLE_STEP)

    other = trained(mode, "float32", SOME_GROUPS)

    losses = _logged(single, run, "loss")
    assert len(losses) == 20
    assert _logged(other, run, "loss") == pytest.approx(losses, abs=1e-5)
    first_norm = _logged(single, run, "grad_norm")[0]
    assert _logged(other, run, "grad_norm")[0] == pytest.approx(first_norm, rel=1e-6)
    if run.endswith("full"):
        weights, others = _weights(single / run), _weights(other / run)
        update = weights - _weights(folder / "model")
    else:
        # The B of a new adapter starts at 0, so it is its own update.
        weights, others = _weights(single / run, "lora_B"), _weights(other / run, "lora_B")
        update = weights
    assert _relative(others - weights, update) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", *SHARDED])
def test_the_mode_is_the_one_that_was_asked_for(trained, mode):
    facts = _facts(trained(mode, "float32", SOME_GROUPS), "dpo-full")

    assert facts["processes"] == 2
    kind = {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}.get(mode, "DEEPSPEED")
    assert facts["type"].endswith(kind)
    assert (facts["dtensors"] == facts["parameters"]) == (mode == "fsdp2")
    assert (facts["partitioned"] == facts["parameters"]) == (mode == "zero3")
    assert facts["zero_stage"] == {"zero1": 1, "zero2": 2, "zero3": 3}.get(mode, 0)


@pytest.mark.slow
def test_the_best_model_is_loaded_on_every_process(folder):
    recipe = folder / "best.yaml"
    recipe.write_text(
        json.dumps(
            {
                "model": {"path": str(folder / "model")},
                "data": {
                    "sources": [{"path": str(folder / "pairs.jsonl")}],
                    "evaluation": {"num_groups": 5},
                    "cache_dir": str(folder / "cache"),
                },
                "objective": {"name": "nll", "of": "all"},
                "training": {
                    "output_dir": str(folder / "best"),
                    "groups_per_step": 7,
                    "max_steps": 3,
                    # Every step makes it worse, so the first checkpoint is the best.
                    "learning_rate": 3.0,
                    "lr_scheduler_type": "constant",
                    "logging_steps": 1,
                    "eval_strategy": "steps",
                    "eval_steps": 1,
                    "save_strategy": "steps",
                    "save_steps": 1,
                    "load_best_model_at_end": True,
                    "metric_for_best_model": "eval_loss",
                },
            }
        )
    )

    launch("zero2", "-m", "prefopt", "train", recipe)

    lines = (folder / "best" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["eval_loss"] for line in lines if "eval_loss" in json.loads(line)]
    best = folder / "best" / f"checkpoint-{1 + losses.index(min(losses))}"
    assert torch.equal(_weights(folder / "best"), _weights(best))


@pytest.mark.slow
def test_sharding_does_not_round_log_probs_to_bfloat16(folder):
    logged = {}
    for mode in ("ddp", "fsdp2"):
        recipe = folder / f"{mode}-bf16.yaml"
        recipe.write_text(
            json.dumps(
                {
                    "model": {"path": str(folder / "model")},
                    "data": {
                        "sources": [{"path": str(folder / "pairs.jsonl")}],
                        "cache_dir": str(folder / "cache"),
                    },
                    "objective": {"name": "dpo"},
                    "training": {
                        "output_dir": str(folder / f"{mode}-bf16"),
                        "groups_per_step": 7,
                        "max_steps": 1,
                        "logging_steps": 1,
                        "save_strategy": "no",
                        "bf16": True,
                    },
                }
            )
        )
        launch(mode, "-m", "prefopt", "train", recipe)
        logged[mode] = _logged(folder, f"{mode}-bf16", "logps/chosen")[0]

    # Both compute in bfloat16. Rounded at the end, each of about 10 tokens would be off by up to
    # 2^-8 of its 5 nats, and sums of 50 nats by 0.1.
    assert logged["fsdp2"] == pytest.approx(logged["ddp"], abs=0.03)
