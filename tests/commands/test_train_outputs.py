"""What a run leaves behind, read back with plain transformers and peft."""

import json

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.config import load_recipe
from tests.support.runs import LORA, logged, logits_of, policy, recipe, run, snapshot
from tests.support.tiny import CHAT_TEMPLATE, save_tiny_model, write_pairs

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
METRIC_NAMES = {
    "loss",
    "grad_norm",
    "learning_rate",
    "epoch",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


@pytest.fixture(scope="module")
def full(folder):
    return run(folder, "full", curves=True, training=SAVING)


@pytest.fixture(scope="module")
def lora(folder):
    return run(folder, "lora", curves=True, adapter=LORA, training=SAVING)


@pytest.fixture(scope="module")
def continued(folder, lora):
    return run(folder, "continued", adapter={"path": str(folder / "lora")}, training=SAVING)


def base_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "model")


def test_a_full_run_loads_with_plain_transformers(folder, full):
    model = AutoModelForCausalLM.from_pretrained(folder / "full")

    trained = snapshot(policy(full))
    assert {name: value.tolist() for name, value in model.named_parameters()} == {
        name: value.tolist() for name, value in trained.items()
    }
    assert torch.equal(logits_of(model), logits_of(policy(full)))


def test_every_checkpoint_of_a_full_run_loads_with_plain_transformers(folder, full):
    finished = logits_of(AutoModelForCausalLM.from_pretrained(folder / "full"))

    first, last = (
        logits_of(AutoModelForCausalLM.from_pretrained(folder / "full" / f"checkpoint-{step}"))
        for step in (1, 2)
    )

    assert torch.equal(last, finished)
    assert not torch.equal(first, finished)


@pytest.mark.parametrize("place", ["full", "full/checkpoint-1", "lora", "lora/checkpoint-1"])
def test_tokenizer_and_chat_template_lie_with_the_weights(folder, full, lora, place):
    tokenizer = AutoTokenizer.from_pretrained(folder / place)

    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (folder / place / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert tokenizer("abc")["input_ids"] == full.processing_class("abc")["input_ids"]


def test_a_template_of_the_recipe_is_saved_as_the_models_own(folder):
    run(folder, "templated", model={"chat_template": "chatml"}, training={"max_steps": 1})

    assert "<|im_start|>" in AutoTokenizer.from_pretrained(folder / "templated").chat_template


def test_a_lora_run_and_its_checkpoints_load_with_plain_peft(folder, lora):
    expected = logits_of(policy(lora))
    for place in ("lora", "lora/checkpoint-2"):
        model = PeftModel.from_pretrained(base_of(folder), folder / place)

        torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-6)
    first = PeftModel.from_pretrained(base_of(folder), folder / "lora" / "checkpoint-1")
    assert (logits_of(first) - expected).abs().max() > 1e-5


def test_a_run_that_goes_on_from_an_adapter_saves_only_the_policys(folder, continued):
    for place in ("continued", "continued/checkpoint-1", "continued/checkpoint-2"):
        assert [file for file in (folder / place).rglob("*") if "reference" in file.name] == []
        assert (folder / place / "adapter_model.safetensors").is_file()
    model = PeftModel.from_pretrained(base_of(folder), folder / "continued")

    expected = logits_of(policy(continued))
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-6)
    start = PeftModel.from_pretrained(base_of(folder), folder / "lora")
    assert (logits_of(start) - expected).abs().max() > 1e-4


def test_the_folder_holds_card_recipe_versions_metrics_and_curves(folder, full, lora):
    for name in ("full", "lora"):
        run_folder = folder / name
        assert f"# {name}" in (run_folder / "README.md").read_text()
        assert json.loads((run_folder / "versions.json").read_text())["torch"] == torch.__version__
        assert (run_folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "library_name: peft" in (folder / "lora" / "README.md").read_text()
    assert "library_name: transformers" in (folder / "full" / "README.md").read_text()


def test_the_stored_recipe_is_the_recipe(folder, full, lora, continued):
    stored = {
        name: load_recipe(folder / name / "recipe.yaml") for name in ("full", "lora", "continued")
    }

    started = {"path": str(folder / "lora")}
    assert stored["full"] == recipe(folder, "full", training=SAVING)
    assert stored["lora"] == recipe(folder, "lora", adapter=LORA, training=SAVING)
    assert stored["continued"] == recipe(folder, "continued", adapter=started, training=SAVING)
    assert yaml.safe_load((folder / "full" / "recipe.yaml").read_text())["objective"] == {
        "name": "dpo",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "length_normalized": False,
    }


def test_metrics_have_the_names_of_trl(full):
    with open(f"{full.args.output_dir}/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]

    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert set(lines[0]) >= METRIC_NAMES
    assert "train_loss" in lines[-1]
    assert logged(full, "loss")[0] == pytest.approx(0.6931472, abs=1e-6)


def test_nothing_but_the_run_is_left_in_its_folder(folder, full, lora):
    common = {
        "README.md",
        "recipe.yaml",
        "versions.json",
        "data.json",
        "metrics.jsonl",
        "curves.png",
        "checkpoint-1",
        "checkpoint-2",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "training_args.bin",
    }

    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert {file.name for file in (folder / "full").iterdir()} == common | weights
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert {file.name for file in (folder / "lora").iterdir()} == common | adapter


def test_a_lora_run_leaves_the_base_bit_for_bit(folder, lora, continued):
    base = dict(base_of(folder).named_parameters())

    for trainer in (lora, continued):
        kept = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): value
            for name, value in policy(trainer).named_parameters()
            if "lora_" not in name
        }
        assert kept.keys() == base.keys()
        assert all(torch.equal(kept[name], base[name]) for name in base)


def test_a_full_run_moves_every_tensor_and_no_bit_of_the_reference(folder, full):
    base = dict(base_of(folder).named_parameters())

    reference = dict(full.reference.model.named_parameters())
    assert all(torch.equal(reference[name], base[name]) for name in base)
    assert [name for name, value in snapshot(policy(full)).items() if value.equal(base[name])] == []


def test_a_lora_run_moves_every_tensor_of_the_adapter_and_none_of_its_start(folder, continued):
    start = PeftModel.from_pretrained(base_of(folder), folder / "lora", adapter_name="reference")
    started = {name: value for name, value in start.named_parameters() if "lora_" in name}

    now = snapshot(policy(continued))
    assert all(torch.equal(now[name], started[name]) for name in started)
    moved = [name.replace(".reference.", ".default.") for name in started]
    assert all(
        not torch.equal(now[name], started[name.replace(".default.", ".reference.")])
        for name in moved
    )


def test_a_new_adapter_depends_on_the_seed_of_the_recipe(folder, lora):
    torch.manual_seed(12345)
    again = run(folder, "again", adapter=LORA, training=SAVING)
    other = run(folder, "other", adapter=LORA, training={**SAVING, "seed": 7})

    first = snapshot(policy(lora))
    assert all(torch.equal(first[name], value) for name, value in snapshot(policy(again)).items())
    assert not all(
        torch.equal(first[name], value) for name, value in snapshot(policy(other)).items()
    )
