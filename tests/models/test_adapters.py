"""Adapters: what they reach, what is refused, and how they go on."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.errors import UserError
from prefopt.models.load import check_model_sections, load_policy
from prefopt.models.section import AdapterSection, ModelSection
from prefopt.models.self_check import deviation_from_plain
from tests.support.batches import batch_of_row
from tests.support.runs import LORA, logged, policy, run, snapshot
from tests.support.tiny import save_tiny_model, write_pairs

ROW = torch.arange(5, 30).unsqueeze(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "tied", tie_word_embeddings=True)
    save_tiny_model(folder / "wide", hidden_size=64)
    write_pairs(folder / "pairs.jsonl", 12)
    run(folder, "started", adapter=LORA, training={"learning_rate": 1e-2})
    return folder


def load(folder, name="model", **adapter):
    section = ModelSection(path=str(folder / name))
    return load_policy(section, AdapterSection(**adapter))


def refusal(action):
    with pytest.raises(UserError) as refused:
        action()
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head"]},
    ],
)
@pytest.mark.parametrize("name", ["model", "tied"])
def test_an_adapted_head_is_refused(folder, name, adapter):
    message = refusal(lambda: load(folder, name, **adapter))

    assert message.startswith("adapter: the output projection")
    assert "adapter.target_modules" in message


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_an_adapter_that_brings_an_adapted_head_is_refused(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    get_peft_model(base, LoraConfig(target_modules=["lm_head"])).save_pretrained(tmp_path / "head")

    message = refusal(lambda: load(folder, path=str(tmp_path / "head")))

    assert message.startswith("adapter: the output projection")


def test_an_adapted_head_is_refused_before_training(folder, tmp_path):
    message = refusal(
        lambda: run(folder, str(tmp_path / "run"), adapter={"target_modules": ["lm_head"]})
    )

    assert message.startswith("adapter: the output projection")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_all_linear_layers_leave_the_head_out(folder):
    model = load(folder)

    adapted = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


EMBEDDING = [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
]
OTHERS = [{"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, {"dora": True}]


@pytest.mark.parametrize("adapter", EMBEDDING)
def test_an_adapted_embedding_that_is_the_head_too_is_refused(folder, adapter):
    message = refusal(lambda: load(folder, "tied", **adapter))

    assert message.startswith("adapter: the input embedding shares its weight with the output")


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        *[("model", adapter) for adapter in EMBEDDING + OTHERS],
        *[("tied", adapter) for adapter in OTHERS],
    ],
)
def test_log_probs_are_those_of_plain_peft(folder, name, adapter):
    model = load(folder, name, **adapter).eval()
    start = model(input_ids=ROW, use_cache=False).logits.detach()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)

    assert deviation_from_plain(model, batch_of_row(ROW)).item() < 1e-5
    moved = model(input_ids=ROW, use_cache=False).logits.detach()
    assert (moved - start).abs().max() > 1e-2


def test_an_unknown_layer_is_refused(folder):
    message = refusal(lambda: load(folder, target_modules=["q_prj", "v_proj"]))

    assert message.startswith("adapter.target_modules: no layer 'q_prj'. Did you mean 'q_proj'?")


def test_a_pattern_that_matches_nothing_is_refused(folder):
    message = refusal(lambda: load(folder, target_modules=r".*\.no_such_layer"))

    assert message.startswith("adapter.target_modules: ")
    assert "no_such_layer" in message


def test_an_unknown_layer_to_save_is_refused(folder):
    message = refusal(
        lambda: load(folder, target_modules=["q_proj"], modules_to_save=["no_such_layer"])
    )

    assert message.startswith("adapter.modules_to_save: ")
    assert "no_such_layer" in message


def test_dropout_of_an_adapter_needs_that_of_the_model(folder):
    section = ModelSection(path=str(folder / "model"))

    message = refusal(lambda: check_model_sections(section, AdapterSection(dropout=0.1)))

    assert message.startswith("adapter.dropout has no effect while model.dropout is false")
    check_model_sections(section.model_copy(update={"dropout": True}), AdapterSection(dropout=0.1))


def test_a_missing_adapter_is_named(folder, tmp_path):
    adapter = {"path": str(tmp_path / "nowhere")}

    message = refusal(lambda: run(folder, str(tmp_path / "run"), adapter=adapter))

    assert message.startswith("adapter.path: no folder")
    assert not (tmp_path / "run").exists()


def test_a_model_is_no_adapter(folder, tmp_path):
    adapter = {"path": str(folder / "model")}

    message = refusal(lambda: run(folder, str(tmp_path / "run"), adapter=adapter))

    assert "has no adapter_config.json" in message
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_model_is_refused(folder):
    message = refusal(lambda: load(folder, "wide", path=str(folder / "started")))

    assert message.startswith("adapter.path: ")
    assert "does not fit model.path" in message


def test_an_adapter_of_another_architecture_is_refused(folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    get_peft_model(gpt2, config).save_pretrained(tmp_path / "gpt2")

    message = refusal(lambda: load(folder, path=str(tmp_path / "gpt2")))

    assert "does not fit model.path" in message


def test_a_run_that_goes_on_from_an_adapter_resumes_as_if_it_had_not_stopped(folder, tmp_path):
    adapter = {"path": str(folder / "started")}
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = run(folder, str(tmp_path / "run"), adapter=adapter, training=training)
    parameters, losses = snapshot(policy(whole)), logged(whole, "loss")

    resumed = run(
        folder,
        str(tmp_path / "run"),
        adapter=adapter,
        training=training,
        resume=str(tmp_path / "run" / "checkpoint-2"),
    )

    assert logged(resumed, "loss") == losses
    again = snapshot(policy(resumed))
    assert again.keys() == parameters.keys()
    assert [name for name in again if not again[name].equal(parameters[name])] == []
