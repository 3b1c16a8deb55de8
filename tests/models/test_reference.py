"""Policy and reference agree before the first update, whatever the reference is."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prefopt.errors import UserError
from prefopt.models.reference import FrozenCopy, StartOfAdapter
from tests.support.runs import LORA, logged, policy, run, snapshot
from tests.support.tiny import character_tokenizer, save_tiny_model, write_pairs

ALL = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
ANALYTIC = {"dpo": math.log(2), "ipo": 25.0}
ADAPTERS = {
    "none": {},
    "lora": {"adapter": LORA},
    "all-linear": {"adapter": ALL},
    "dora": {"adapter": {**LORA, "dora": True}},
    "rslora": {"adapter": {**LORA, "rslora": True}},
    "embeddings": {"adapter": {**LORA, "modules_to_save": ["embed_tokens"]}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "other", seed=1)
    save_tiny_model(folder / "dropping", attention_dropout=0.5)
    save_gpt2(folder / "gpt2")
    write_pairs(folder / "pairs.jsonl", 12)
    run(folder, "started", adapter=LORA, training={"learning_rate": 1e-2})
    return folder


def save_gpt2(path):
    """A model with dropout of all kinds."""
    tokenizer = character_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        resid_pdrop=0.1,
        bos_token_id=1,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def first_loss(trainer):
    return logged(trainer, "loss")[0]


@pytest.mark.parametrize(
    ("objective", "adapter"),
    [*[("dpo", adapter) for adapter in ADAPTERS], ("ipo", "none"), ("ipo", "lora")],
)
def test_the_first_loss_is_the_analytic_one(folder, tmp_path, objective, adapter):
    trainer = run(
        folder,
        str(tmp_path / "run"),
        objective={"name": objective},
        training={"max_steps": 1},
        **ADAPTERS[adapter],
    )

    assert first_loss(trainer) == pytest.approx(ANALYTIC[objective], abs=1e-6)
    assert logged(trainer, "grad_norm")[0] > 0
    expected = FrozenCopy if adapter == "none" else StartOfAdapter
    assert isinstance(trainer.reference, expected)


@pytest.mark.parametrize("objective", ANALYTIC)
def test_going_on_from_an_adapter_starts_at_that_adapter(folder, tmp_path, objective):
    started = {"path": str(folder / "started")}

    trainer = run(folder, str(tmp_path / "run"), objective={"name": objective}, adapter=started)

    first, second = logged(trainer, "loss")
    assert first == pytest.approx(ANALYTIC[objective], abs=1e-6)
    assert abs(second - first) > 1e-4


def test_going_on_from_an_adapter_scores_the_reference_with_it(folder, tmp_path):
    started = {"path": str(folder / "started")}
    one_step = {"max_steps": 1, "shuffle": False}

    plain = run(folder, str(tmp_path / "plain"), training=one_step)
    going_on = run(folder, str(tmp_path / "on"), adapter=started, training=one_step)

    batch = plain.train_dataset[0, 0].micro_batches[0]
    of_base = plain.reference.token_logps(batch, plain.model)
    of_start = going_on.reference.token_logps(batch, going_on.model)
    assert (of_base - of_start).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("objective", "adapter", "model"),
    [
        ("dpo", "none", "gpt2"),
        ("ipo", "lora", "gpt2"),
        ("ipo", "none", "dropping"),
        ("dpo", "lora", "dropping"),
    ],
)
def test_dropout_is_off_in_policy_and_reference(folder, tmp_path, objective, adapter, model):
    trainer = run(
        folder,
        str(tmp_path / "run"),
        model={"path": str(folder / model)},
        objective={"name": objective},
        training={"max_steps": 1},
        **({"adapter": ALL} if adapter == "lora" else {}),
    )

    assert first_loss(trainer) == pytest.approx(ANALYTIC[objective], abs=1e-6)


@pytest.mark.parametrize("adapter", [{}, {"adapter": {**ALL, "dropout": 0.1}}])
def test_dropout_that_is_asked_for_is_on_in_the_policy_alone(folder, tmp_path, adapter):
    model = {"path": str(folder / "gpt2"), "dropout": True}

    trainer = run(folder, str(tmp_path / "run"), model=model, training={"max_steps": 1}, **adapter)

    assert abs(first_loss(trainer) - math.log(2)) > 1e-3
    batch = trainer.train_dataset[0, 0].micro_batches[0]
    trained = policy(trainer).train()
    first, again = (trainer.reference.token_logps(batch, trained) for _ in range(2))
    assert torch.equal(first, again)
    assert trained.training
    assert any(module.training for module in trained.modules() if module is not trained)


def test_attention_dropout_that_is_asked_for_is_on(folder, tmp_path):
    model = {"path": str(folder / "dropping"), "dropout": True}

    trainer = run(folder, str(tmp_path / "run"), model=model, training={"max_steps": 1})

    assert abs(first_loss(trainer) - math.log(2)) > 1e-3


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_another_model_can_be_the_reference(folder, tmp_path, adapter):
    other = {"path": str(folder / "other")}

    trainer = run(folder, str(tmp_path / "run"), reference=other, **ADAPTERS[adapter])

    assert abs(first_loss(trainer) - math.log(2)) > 1e-3
    assert isinstance(trainer.reference, FrozenCopy)


def test_an_adapter_run_may_take_another_reference_than_its_start(folder, tmp_path):
    """The reference is the base model itself, the policy starts from an adapter on it."""
    trainer = run(
        folder,
        str(tmp_path / "run"),
        adapter={"path": str(folder / "started")},
        reference={"path": str(folder / "model")},
    )

    assert abs(first_loss(trainer) - math.log(2)) > 1e-3
    assert list(policy(trainer).peft_config) == ["default"]


def test_a_missing_reference_is_named_before_anything_is_written(folder, tmp_path):
    output = tmp_path / "run"

    with pytest.raises(UserError, match=r"^reference\.path: no folder .*nowhere") as refused:
        run(folder, str(output), reference={"path": str(tmp_path / "nowhere")})

    assert "\n" not in str(refused.value)
    assert not output.exists()


def test_an_adapter_is_no_reference(folder, tmp_path):
    output = tmp_path / "run"

    with pytest.raises(UserError, match=r"^reference\.path: .* holds an adapter"):
        run(folder, str(output), reference={"path": str(folder / "started")})

    assert not output.exists()


def test_a_folder_without_a_model_is_no_reference(folder, tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(UserError, match=r"^reference\.path: cannot load") as refused:
        run(folder, str(tmp_path / "run"), reference={"path": str(tmp_path / "empty")})

    assert "\n" not in str(refused.value)


def test_scoring_with_the_reference_leaves_gradients_and_adapter_as_they_were(folder, tmp_path):
    trainer = run(folder, str(tmp_path / "run"), adapter={"path": str(folder / "started")})
    model = policy(trainer)
    before, modes = snapshot(model), {n: p.requires_grad for n, p in model.named_parameters()}
    batch = trainer.train_dataset[0, 0].micro_batches[0]

    trainer.reference.token_logps(batch, model)

    assert model.active_adapters == ["default"]
    assert {n: p.requires_grad for n, p in model.named_parameters()} == modes
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
