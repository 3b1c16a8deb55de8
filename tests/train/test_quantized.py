"""QLoRA on 4-bit weights: it trains, saves and resumes on a CPU."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from prefopt.cli import main
from prefopt.diagnostics.gram import GramMeter
from prefopt.errors import UserError
from prefopt.models.layout import token_logps
from tests.support.runs import LORA, logged, logits_of, policy, run, snapshot
from tests.support.tiny import character_tokenizer, save_tiny_model, write_pairs

pytest.importorskip("bitsandbytes")

TRAINING = {
    "max_steps": 6,
    "learning_rate": 5e-3,
}
SAVES = {"save_strategy": "steps", "save_steps": 3}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    # Blocks of 64 weights share a scale, so nothing below that width is quantised as in life.
    save_tiny_model(folder / "model", hidden_size=64, intermediate_size=128)
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


def train(folder, output, dtype, **options):
    model = {"path": str(folder / "model"), "dtype": dtype, "quantization": "nf4"}
    return run(folder, output, model=model, adapter=LORA, training={**TRAINING, **SAVES}, **options)


def plain_four_bit_base(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(
        folder / "model",
        dtype=DTYPES[dtype],
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=DTYPES[dtype],
            bnb_4bit_use_double_quant=True,
        ),
    )


@pytest.fixture(scope="module", params=DTYPES)
def trained(request, folder):
    """A finished run, its adapter and its losses."""
    trainer = train(folder, f"run-{request.param}", request.param)
    adapter = {name: v for name, v in snapshot(policy(trainer)).items() if "lora_" in name}
    return request.param, trainer, adapter, logged(trainer, "loss")


@pytest.mark.slow
def test_it_trains_an_adapter_on_four_bit_weights(folder, trained):
    from bitsandbytes.nn import Params4bit

    dtype, trainer, adapter, losses = trained

    linear = [
        value
        for name, value in policy(trainer).named_parameters()
        if name.endswith("proj.base_layer.weight") or name.endswith("proj.weight")
    ]
    assert len(linear) == 14
    assert all(isinstance(value, Params4bit) and value.dtype == torch.uint8 for value in linear)
    assert losses[0] == pytest.approx(0.6931472, abs=1e-6 if dtype == "float32" else 1e-3)
    assert abs(losses[-1] - losses[0]) > 0.05
    assert all(value.dtype == torch.float32 for value in adapter.values())
    assert all(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)
    base = dict(plain_four_bit_base(folder, dtype).named_parameters())
    now = snapshot(policy(trainer))
    for name, value in base.items():
        kept = f"base_model.model.{name}"
        same = now[kept] if kept in now else now[kept.replace(".weight", ".base_layer.weight")]
        assert torch.equal(same, value)


@pytest.mark.slow
def test_the_adapter_loads_with_plain_peft_on_a_plain_four_bit_base(folder, trained):
    dtype, trainer, _, _ = trained
    # In evaluation mode bitsandbytes takes another kernel on some CPUs, good to 0.1 only.
    expected = logits_of(policy(trainer), training=True)

    for place in (".", "checkpoint-6"):
        base = plain_four_bit_base(folder, dtype)
        start = logits_of(base, training=True)
        loaded = PeftModel.from_pretrained(base, folder / f"run-{dtype}" / place)

        torch.testing.assert_close(logits_of(loaded, training=True), expected, rtol=0, atol=1e-5)
        assert (expected - start).abs().max() > 0.1


@pytest.mark.slow
def test_it_learns_as_on_the_same_weights_in_float32(folder, trained, tmp_path):
    """Gradients reach every adapter: those of the first layer pass through all others."""
    dtype, trainer, _, losses = trained
    base = plain_four_bit_base(folder, "float32")
    base.dequantize().save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    training = TRAINING

    plain = run(
        folder,
        str(tmp_path / "run"),
        model={"path": str(tmp_path / "model")},
        adapter=LORA,
        training=training,
    )

    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert logged(plain, "loss") == pytest.approx(losses, rel=tolerance)
    norms = [logged(trainer, "grad_norm"), logged(plain, "grad_norm")]
    assert norms[0] == pytest.approx(norms[1], rel=tolerance)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_unbroken_one_does(folder, trained):
    dtype, _, adapter, losses = trained
    run_folder = folder / f"run-{dtype}"

    resumed = train(folder, f"run-{dtype}", dtype, resume=str(run_folder / "checkpoint-3"))

    again = snapshot(policy(resumed))
    assert [name for name, value in adapter.items() if not again[name].equal(value)] == []
    assert logged(resumed, "loss") == losses


@pytest.mark.slow
def test_recomputed_activations_change_no_loss(folder, trained, tmp_path):
    dtype, _, _, losses = trained
    model = {"path": str(folder / "model"), "dtype": dtype, "quantization": "nf4"}
    training = {**TRAINING, "gradient_checkpointing": True}

    again = run(folder, str(tmp_path / "run"), model=model, adapter=LORA, training=training)

    assert logged(again, "loss") == pytest.approx(losses, abs=1e-6)


def test_four_bits_without_an_adapter_are_refused_before_anything_is_written(folder, tmp_path):
    model = {"path": str(folder / "model"), "quantization": "nf4"}

    with pytest.raises(UserError, match=r"^model\.quantization: .*Add an adapter section"):
        run(folder, str(tmp_path / "run"), model=model)

    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_gram_is_that_of_the_adapter_alone(folder, trained):
    dtype, trainer, *_ = trained
    model = policy(trainer)
    batch = trainer.train_dataset.group(0)

    found = GramMeter(model).measure(batch)

    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found.of_parameter.keys() == named.keys()
    assert all("lora_" in name for name in named)
    logps = batch.sum_over_tokens(token_logps(model, batch))[0]
    rows = torch.stack(
        [
            torch.cat([g.double().flatten() for g in gradients])
            for gradients in (
                torch.autograd.grad(logp, list(named.values()), retain_graph=True) for logp in logps
            )
        ]
    )
    expected = rows @ rows.T
    size = expected.diagonal().sqrt()
    tolerance = 1e-4 if dtype == "float32" else 0.05
    assert ((found.total - expected).abs() <= tolerance * size[:, None] * size).all()


@pytest.mark.slow
def test_diagnose_says_that_weights_in_four_bits_have_no_part(folder, trained, tmp_path):
    _, trainer, *_ = trained

    with pytest.raises(SystemExit) as ended:
        main(["diagnose", trainer.args.output_dir, "--groups", "3", "--output", str(tmp_path)])

    assert ended.value.code == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "Weights in 4 bits are not trained and have no part in any Gram." in found["notes"]
    assert 0 < found["num_measured"] == found["num_trainable"]
    assert found["entanglement"]["num_pairs"] == 3
