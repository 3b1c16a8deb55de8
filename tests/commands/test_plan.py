"""`prefopt plan`: what it prints, what it reads, and what it refuses."""

import json

import pytest
import yaml
from transformers import AutoConfig

from prefopt.cli import main
from tests.support.tiny import save_tiny_model, write_pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    save_tiny_model(folder / "model")
    AutoConfig.from_pretrained(folder / "model").save_pretrained(folder / "shape")
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


@pytest.fixture
def plan(place, capsys):
    """Runs `prefopt plan` on a recipe that differs in some sections; returns what it printed."""

    def run(*flags, code=0, **sections):
        recipe = {
            "model": {"path": str(place / "model")},
            "data": {
                "sources": [{"path": str(place / "pairs.jsonl")}],
                "cache_dir": str(place / "cache"),
            },
            "objective": {"name": "dpo"},
            "training": {
                "output_dir": str(place / "run"),
                "groups_per_step": 8,
                "tokens_per_micro_batch": 64,
            },
        }
        for name, section in sections.items():
            recipe[name] = {**recipe.get(name, {}), **section}
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(SystemExit) as exit_info:
            main(["plan", str(place / "recipe.yaml"), *flags])
        said = capsys.readouterr()
        assert exit_info.value.code == code, said.err
        return said.err if code else said.out

    yield run
    assert not (place / "run").exists()


def modes_of(printed: str) -> dict[str, dict]:
    return {each["mode"]: each for each in json.loads(printed)["modes"]}


def test_all_modes_stand_side_by_side(plan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    printed = plan("--gpus", "4")

    head = printed.splitlines()
    assert any("ddp" in line and "zero3" in line and "fsdp2" in line for line in head)
    for name in ("weights", "gradients", "optimiser state", "reference", "activations", "fits"):
        assert name in printed
    assert "* assumed: 35% of 989.4 TFLOP/s" in printed
    assert "reference cache" in printed


def test_json_has_every_number(plan):
    found = modes_of(plan("--gpus", "4", "--json"))

    weights = found["ddp"]["memory"]["weights"]
    assert found["zero3"]["memory"]["weights"] == weights // 4
    assert found["ddp"]["memory"]["optimizer"] == 2 * weights
    assert found["single"]["num_gpus"] == 1
    assert found["ddp"]["num_gpus"] == 4
    assert all(each["fits"] for each in found.values())


def test_one_mode_is_shown_alone_and_memory_decides_whether_it_fits(plan):
    found = modes_of(plan("--gpus", "2", "--mode", "fsdp2", "--gpu-memory", "1", "--json"))

    assert list(found) == ["fsdp2"]
    assert not found["fsdp2"]["fits"]


def test_a_configuration_alone_is_planned_for_with_assumed_lengths(plan, place):
    shape, tokenized = {"path": str(place / "shape")}, {"path": str(place / "model")}
    without, whole = (json.loads(plan("--json", model=model)) for model in (shape, tokenized))

    assert without["counts"] == whole["counts"]
    assumed = "assumed are 2 responses of 305 tokens to prompts of 185"
    assert any(assumed in note for note in without["notes"])
    assert any("no tokenizer" in note for note in without["notes"])
    assert not any("assumed" in note for note in whole["notes"])


def test_gradient_checkpointing_is_shown_both_ways(plan):
    off = modes_of(plan("--json"))["single"]
    on = modes_of(plan("--json", training={"gradient_checkpointing": True}))["single"]

    assert (on["total"], on["total_otherwise"]) == (off["total_otherwise"], off["total"])
    assert on["total"] < off["total"]


def test_a_live_reference_takes_memory_and_a_pass_and_a_cached_one_neither(plan):
    cached = json.loads(plan("--json"))
    live = json.loads(plan("--json", reference={"cache": "off"}))

    assert cached["modes"][0]["memory"]["reference"] == 0
    assert live["modes"][0]["memory"]["reference"] == live["modes"][0]["memory"]["weights"]
    # Training is three forward passes, so a live reference makes it four.
    assert live["operations_per_step"] == pytest.approx(4 / 3 * cached["operations_per_step"])
    assert live["seconds_of_cache"] is None


def test_time_is_operations_over_what_the_gpus_are_assumed_to_do(plan):
    found = json.loads(
        plan("--gpus", "2", "--peak-tflops", "100", "--utilization", "0.5", "--json")
    )

    expected = found["operations_per_step"] / (2 * 100e12 * 0.5)
    assert found["seconds_per_step"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("flags", "sections", "words"),
    [
        (["--gpus", "0"], {}, ["--gpus: should be greater than 0, got 0"]),
        (["--gpu-memory", "-1"], {}, ["--gpu-memory", "got -1"]),
        (["--utilization", "35"], {}, ["--utilization", "got 35", "0.35"]),
        (["--peak-tflops", "0"], {}, ["--peak-tflops", "got 0"]),
        (["--mode", "zero4"], {}, ["no mode 'zero4'", "Did you mean"]),
        (["--mode", "ddp"], {}, ["ddp needs at least 2 GPUs, got --gpus 1"]),
        (["--mode", "single", "--gpus", "8"], {}, ["single uses 1 GPU, got --gpus 8"]),
        ([], {"model": {"path": "/no/such/model"}}, ["model.path: no folder /no/such/model"]),
        ([], {"adapter": {"target_modules": ["q_prj"]}}, ["no layer 'q_prj'", "'q_proj'"]),
        ([], {"model": {"quantization": "nf4"}}, ["model.quantization", "adapter"]),
    ],
)
def test_mistakes_are_one_line(plan, flags, sections, words):
    said = plan(*flags, code=2, **sections)

    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


def test_a_folder_without_a_model_is_one_line(plan, place):
    (place / "empty").mkdir(exist_ok=True)

    said = plan(code=2, model={"path": str(place / "empty")})

    assert "model.path: no configuration of a model in" in said
    assert said.count("\n") == 1
