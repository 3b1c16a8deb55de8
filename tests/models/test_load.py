"""Policies of several kinds and precisions, and folders that hold none."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from prefopt.errors import UserError
from prefopt.models.layout import token_logps
from prefopt.models.load import check_model_sections, load_causal_lm, load_policy
from prefopt.models.section import AdapterSection, ModelSection
from prefopt.models.self_check import deviation_from_plain
from tests.support.batches import batch_of_row
from tests.support.runs import LORA, logged, policy, run, snapshot
from tests.support.tiny import character_tokenizer, save_tiny_model, write_pairs

ADAPTERS = {"full": {}, "lora": {"adapter": LORA}}
ROW = torch.arange(5, 30).unsqueeze(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    save_tiny_model(folder / "model")
    save_moe(folder / "moe")
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


def save_moe(path):
    tokenizer = character_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def refusal(path, **changes):
    """The one line that loading such a folder ends in, before or while its weights are read."""
    section = ModelSection(path=str(path), **changes)

    def load():
        check_model_sections(section, None)
        load_causal_lm(section)

    with pytest.raises(UserError) as refused:
        load()
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("model.path: ")
    return message


@pytest.mark.parametrize("kind", ADAPTERS)
def test_recomputed_activations_change_no_loss(folder, tmp_path, monkeypatch, kind):
    calls = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP,
        "forward",
        lambda self, x: calls.append(torch.is_grad_enabled()) or forward(self, x),
    )
    losses, norms, num_calls = [], [], []
    for recompute in (False, True):
        calls.clear()
        trainer = run(
            folder,
            str(tmp_path / f"{recompute}"),
            training={"activation_checkpointing": recompute, "max_steps": 3},
            reference={"cache": "off"},
            **ADAPTERS[kind],
        )
        losses.append(logged(trainer, "loss"))
        norms.append(logged(trainer, "grad_norm"))
        num_calls.append(len(calls))

    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    # Once per step and layer.
    assert num_calls[1] - num_calls[0] == 3 * 2


@pytest.mark.parametrize("kind", ADAPTERS)
def test_bf16_training_keeps_log_probs_in_float32(folder, tmp_path, kind):
    plain = run(folder, str(tmp_path / "plain"), **ADAPTERS[kind])

    trainer = run(folder, str(tmp_path / "bf16"), training={"bf16": True}, **ADAPTERS[kind])

    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged(trainer, "loss")[1] == pytest.approx(logged(plain, "loss")[1], abs=0.05)
    assert logged(trainer, "logps/chosen")[0] != logged(plain, "logps/chosen")[0]
    assert {value.dtype for value in policy(trainer).parameters()} == {torch.float32}
    batch = trainer.train_dataset[0, 0].micro_batches[0]
    assert token_logps(trainer.model, batch).dtype == torch.float32
    assert trainer.reference.token_logps(batch, trainer.model).dtype == torch.float32


def test_an_adapter_on_bfloat16_weights_is_trained_in_float32(folder, tmp_path):
    model = {"path": str(folder / "model"), "dtype": "bfloat16"}

    trainer = run(folder, str(tmp_path / "run"), model=model, adapter=LORA)

    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-3)
    dtypes = {"lora_" in name: value.dtype for name, value in policy(trainer).named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    batch = trainer.train_dataset[0, 0].micro_batches[0]
    assert token_logps(trainer.model, batch).dtype == torch.float32


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_recomputing_goes_by_its_old_and_its_new_name(folder, tmp_path, name):
    trainer = run(folder, str(tmp_path / "run"), training={name: True, "max_steps": 1})

    assert trainer.model.is_activation_checkpointing


@pytest.mark.parametrize("adapter", [{}, {"adapter": {"r": 4, "alpha": 8}}])
def test_a_mixture_of_experts_trains(folder, tmp_path, adapter):
    start = snapshot(load_causal_lm(ModelSection(path=str(folder / "moe"))))

    trainer = run(folder, str(tmp_path / "run"), model={"path": str(folder / "moe")}, **adapter)

    first, second = logged(trainer, "loss")
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert second != first
    if not adapter:
        now = snapshot(policy(trainer))
        assert [name for name in now if now[name].equal(start[name])] == []


@pytest.mark.parametrize("name", ["model", "moe"])
def test_log_probs_are_those_of_the_models_logits(folder, name):
    model = load_causal_lm(ModelSection(path=str(folder / name))).eval()

    assert deviation_from_plain(model, batch_of_row(ROW)).item() < 1e-5


def test_dropout_stays_where_it_is_asked_for(tmp_path):
    path = str(save_tiny_model(tmp_path / "model", attention_dropout=0.5))

    off, on = (load_policy(ModelSection(path=path, dropout=keep), None) for keep in (False, True))

    dropouts = [model.model.layers[0].self_attn.attention_dropout for model in (off, on)]
    assert dropouts == [0.0, 0.5]
    assert off.config.attention_dropout == 0.5  # what is saved is the architecture's own


def test_a_missing_folder_is_named(tmp_path):
    assert "no folder" in refusal(tmp_path / "nowhere")
    assert "no folder" in refusal("./runs/sft/checkpoint-3")


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert "cannot load" in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    broken = shutil.copytree(folder / "model", tmp_path / "broken")
    (broken / "model.safetensors").unlink()

    assert "cannot load" in refusal(broken)


def test_weights_that_were_cut_off_are_refused(folder, tmp_path):
    broken = shutil.copytree(folder / "model", tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])

    assert "cannot load" in refusal(broken)


def test_an_adapter_folder_is_no_model(folder, tmp_path):
    run(folder, str(tmp_path / "lora"), adapter=LORA, training={"max_steps": 1})

    message = refusal(tmp_path / "lora")

    assert "holds an adapter, not a model" in message
    assert "adapter.path" in message
    assert "prefopt merge" in message


def test_weights_that_are_not_all_there_are_refused(folder, tmp_path):
    """As those of a reward model, whose output projection would start at random."""
    broken = shutil.copytree(folder / "model", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})

    assert "lacks 1 weights of a LlamaForCausalLM, such as lm_head.weight" in refusal(broken)


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))

    assert "causal language model" in refusal(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "mine"])
def test_code_that_lies_with_a_model_does_not_run(folder, tmp_path, model_type):
    path = shutil.copytree(folder / "model", tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "mine.MyConfig",
        "AutoModelForCausalLM": "mine.MyModel",
    }
    config["model_type"] = model_type
    (path / "config.json").write_text(json.dumps(config))
    (path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")

    if model_type == "llama":  # transformers has the architecture itself
        load_causal_lm(ModelSection(path=str(path)))
    else:
        assert "model.trust_remote_code" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_four_bits_need_an_adapter(folder):
    section = ModelSection(path=str(folder / "model"), quantization="nf4")

    with pytest.raises(UserError, match=r"^model\.quantization: .*Add an adapter section"):
        check_model_sections(section, None)


def test_four_bits_need_bitsandbytes(folder, monkeypatch):
    section = ModelSection(path=str(folder / "model"), quantization="nf4")
    monkeypatch.setattr("prefopt.models.load.is_bitsandbytes_available", lambda: False)

    with pytest.raises(UserError, match=r"pip install 'prefopt\[quant\]'"):
        check_model_sections(section, AdapterSection())
