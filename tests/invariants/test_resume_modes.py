"""Under every engine a run goes on to the same bits, on other processes to nearly the same."""

import shutil
from functools import cache

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.invariants.resume_all import KINDS
from tests.support.ends import differences
from tests.support.launch import CONFIGURATIONS, REPOSITORY, launch, run
from tests.support.tiny import save_tiny_model, write_pairs

SCRIPT = REPOSITORY / "tests" / "invariants" / "resume_all.py"
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 26)
    return folder


@pytest.fixture(scope="module")
def resumed(folder):
    """Runs of a mode: trained through, kept as `straight`, and gone on with from step 2."""

    @cache
    def resumed(mode):
        legs = ("fresh",) if mode == "single" else ("fresh", "2")
        launch(mode, SCRIPT, folder / mode, *legs, environment=ENVIRONMENT)
        for kind in KINDS:
            # Other tests go on in the run's own folder.
            shutil.copytree(folder / mode / kind / "run", folder / mode / kind / "resumed")
        return folder / mode

    return resumed


def _update(folder, kind, run):
    """What was learned, as one vector: the B of a new adapter starts at 0."""
    if kind.endswith("lora"):
        weights = load_file(folder / kind / run / "adapter_model.safetensors")
        names = sorted(name for name in weights if "lora_B" in name)
        return torch.cat([weights[name].double().flatten() for name in names])
    before = load_file(folder.parent / "model" / "model.safetensors")
    after = load_file(folder / kind / run / "model.safetensors")
    assert before.keys() == after.keys()
    return torch.cat([(after[name] - before[name]).double().flatten() for name in sorted(after)])


def _deviation(update, other):
    return (torch.linalg.norm(update - other) / torch.linalg.norm(other)).item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_run_goes_on_to_the_same_bits(resumed, mode, kind):
    folder = resumed(mode) / kind

    assert differences(folder / "resumed", folder / "straight") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "zero2", "zero3"])
def test_what_is_saved_loads_without_any_engine(folder, resumed, mode, kind):
    saved = resumed(mode) / kind / "resumed"

    if kind.endswith("lora"):
        base = AutoModelForCausalLM.from_pretrained(folder / "model")
        loaded = PeftModel.from_pretrained(base, saved).state_dict()
        stored = load_file(saved / "adapter_model.safetensors")
        stored = {name.replace(".weight", ".default.weight"): t for name, t in stored.items()}
    else:
        loaded = AutoModelForCausalLM.from_pretrained(saved).state_dict()
        stored = load_file(saved / "model.safetensors")

    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    alone = _update(resumed("single"), kind, "straight")
    assert _deviation(_update(resumed(mode), kind, "resumed"), alone) < 1e-4


@pytest.fixture(scope="module")
def elastic(resumed):
    """Trained on two processes to step 2, on one to step 4, and on two again to the end."""

    @cache
    def elastic(mode):
        folder = resumed(mode)
        for num_processes, leg in ((1, "2"), (2, "4")):
            launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
            launcher += ["--config_file", CONFIGURATIONS / f"{mode}.yaml"]
            done = run(*launcher, SCRIPT, folder, leg, environment=ENVIRONMENT)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return folder

    return elastic


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_other_processes(elastic, mode, kind):
    folder = elastic(mode)

    update = _update(folder, kind, "run")

    assert _deviation(update, _update(folder, kind, "straight")) < 1e-4


@pytest.mark.slow
def test_zero_refuses_another_number_of_processes(resumed):
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "1"]
    launcher += ["--config_file", CONFIGURATIONS / "zero2.yaml"]

    done = run(*launcher, SCRIPT, resumed("zero2"), "2", environment=ENVIRONMENT)

    assert done.returncode != 0
    assert "was written under zero2 by 2 processes" in done.stderr


# What the second process wrote of a checkpoint.
OF_RANK_1 = {
    "ddp": "rng_state_1.pth",
    "zero3": "*pp_rank_1_*optim_states.pt",
    "fsdp2": "rng_state_1.pth",
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", OF_RANK_1)
def test_a_file_of_another_process_that_is_missing_is_named(resumed, tmp_path, mode):
    folder = resumed(mode)
    checkpoint = folder / "dpo-full" / "run" / "checkpoint-2"
    file = next(checkpoint.rglob(OF_RANK_1[mode]))
    file.rename(tmp_path / file.name)
    launcher = ["-m", "accelerate.commands.launch"]
    launcher += ["--config_file", CONFIGURATIONS / f"{mode}.yaml"]

    done = run(*launcher, SCRIPT, folder, "2", environment=ENVIRONMENT)

    (tmp_path / file.name).rename(file)
    assert done.returncode != 0
    missing = f"{checkpoint}: {file.relative_to(checkpoint)} is missing. Put its files back"
    assert missing in " ".join(done.stderr.split())
    assert not (checkpoint.parent / "config.json").exists()
