"""A model without weights has the numbers of the real one."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, MixtralConfig

from prefopt.errors import UserError
from prefopt.models.blueprint import draw_up, stored_dtype
from prefopt.models.load import load_policy
from prefopt.models.section import AdapterSection, ModelSection
from tests.support.tiny import save_tiny_model

VOCABULARY, HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = 105, 32, 64, 2, 4, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("blueprint") / "model")


def section(folder, **changes) -> ModelSection:
    return ModelSection.model_validate({"path": str(folder), **changes})


def per_layer() -> int:
    """Query and output, key and value, and the three of the MLP."""
    of_attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN * KV_HEADS // HEADS
    return of_attention + 3 * HIDDEN * MLP


def test_counts_are_those_of_the_loaded_model(folder):
    counts = draw_up(section(folder), None, torch.float32).counts

    loaded = load_policy(section(folder), None)
    assert counts.trained == sum(p.numel() for p in loaded.parameters())
    assert counts.frozen == counts.adapter == counts.quantized == 0
    assert counts.body == LAYERS * per_layer()
    assert counts.head == VOCABULARY * HIDDEN
    assert counts.attention_width == LAYERS * HIDDEN
    # Its two norms too.
    assert counts.largest_layer == counts.largest_layer_trained == per_layer() + 2 * HIDDEN


def test_tied_weights_count_once(tmp_path):
    folder = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)

    counts = draw_up(section(folder), None, torch.float32).counts

    norms = (2 * LAYERS + 1) * HIDDEN
    assert counts.trained == LAYERS * per_layer() + VOCABULARY * HIDDEN + norms
    assert counts.head == VOCABULARY * HIDDEN


def test_an_adapter_counts_as_peft_makes_it(folder):
    adapter = AdapterSection(r=4, target_modules=["q_proj", "down_proj"])
    blueprint = draw_up(section(folder), adapter, torch.bfloat16)

    loaded = load_policy(section(folder, dtype="bfloat16"), adapter)
    trained = [p for p in loaded.parameters() if p.requires_grad]
    counts = blueprint.counts
    assert counts.trained == counts.adapter == sum(p.numel() for p in trained)
    assert counts.trained == LAYERS * 4 * ((HIDDEN + HIDDEN) + (MLP + HIDDEN))
    assert counts.frozen == sum(p.numel() for p in loaded.parameters()) - counts.trained
    assert {p.dtype for p in blueprint.model.parameters() if p.requires_grad} == {trained[0].dtype}


def test_an_adapter_to_go_on_from_brings_its_shape(folder, tmp_path):
    model = load_policy(section(folder), None)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")

    counts = draw_up(
        section(folder), AdapterSection(path=str(tmp_path / "adapter")), torch.float32
    ).counts

    assert counts.trained == LAYERS * 2 * (HIDDEN + HIDDEN * KV_HEADS // HEADS)


def test_an_engine_that_casts_casts_the_adapter_too(folder):
    adapter = AdapterSection(r=4)

    blueprint = draw_up(section(folder), adapter, torch.bfloat16, is_cast=True)

    assert {p.dtype for p in blueprint.model.parameters()} == {torch.bfloat16}


def test_a_token_meets_some_of_the_experts(tmp_path):
    MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    ).save_pretrained(tmp_path)

    counts = draw_up(section(tmp_path), None, torch.float32).counts

    attention, router, expert = 4 * 16 * 16, 4 * 16, 3 * 16 * 24
    assert counts.body == attention + router + 2 * expert
    assert counts.trained == attention + router + 4 * expert + 2 * 64 * 16 + 3 * 16


def test_a_configuration_is_enough(folder, tmp_path):
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path)

    assert draw_up(section(tmp_path), None, torch.float32).counts.head == VOCABULARY * HIDDEN


def test_auto_takes_the_type_of_the_configuration(tmp_path, folder):
    config = AutoConfig.from_pretrained(folder)
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path)

    assert stored_dtype(section(tmp_path, dtype="auto")) == torch.bfloat16
    assert stored_dtype(section(tmp_path)) == torch.float32


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.path: no configuration of a model in"):
        draw_up(section(tmp_path), None, torch.float32)
