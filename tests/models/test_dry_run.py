"""A run without memory holds what the arithmetic of its layers says."""

import pytest
import torch
from transformers import MixtralConfig

from prefopt.errors import UserError
from prefopt.models.blueprint import draw_up
from prefopt.models.dry_run import Row, working_memory
from prefopt.models.section import AdapterSection, ModelSection
from tests.support.tiny import save_tiny_model

HIDDEN, MLP, HEADS, KEYS = 32, 64, 4, 16
ROW = Row(prompt=24, responses=(40,))
TOKENS = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("dry_run")
    return {
        num: save_tiny_model(place / str(num), num_hidden_layers=num, vocab_size=2048)
        for num in (1, 3)
    }


def working(folder, *, dtype=torch.float32, adapter=None, row=ROW, layout="auto", **settings):
    section = ModelSection.model_validate({"path": str(folder), "layout": layout})
    settings = {"is_autocast": False, "is_recomputed": False, **settings}
    return working_memory(draw_up(section, adapter, dtype), row, **settings)


def per_layer(folders, **settings) -> float:
    """Bytes that two layers more take, for each."""
    return (working(folders[3], **settings) - working(folders[1], **settings)) / 2


def test_a_layer_keeps_what_its_backward_pass_reads(folders):
    # Both norms their input, the normalised input and what the products read; queries, keys,
    # values and what attention makes of them; the MLP's two products, the activation and what it
    # is multiplied to. Of each head a log-sum-exp, of each norm a factor.
    numbers = 2 * 3 * HIDDEN + 2 * HIDDEN + 2 * KEYS + 4 * MLP + HEADS + 2

    assert per_layer(folders) == 4 * TOKENS * numbers


def test_recomputed_layers_keep_their_input_alone(folders):
    assert per_layer(folders, is_recomputed=True) == 4 * TOKENS * HIDDEN


def test_twice_the_tokens_take_twice_as_much_per_layer(folders):
    double = Row(prompt=48, responses=(80,))

    assert per_layer(folders, row=double) == 2 * per_layer(folders)


def test_weights_in_half_the_bytes_take_less_than_float32_and_more_than_half(folders):
    # Norms compute in float32.
    share = per_layer(folders, dtype=torch.bfloat16) / per_layer(folders)

    assert 0.5 < share < 0.8


def test_autocast_keeps_a_copy_of_every_weight_of_a_product(folders):
    plain = working(folders[3]) - working(folders[1])
    cast = working(folders[3], is_autocast=True) - working(folders[1], is_autocast=True)
    short = Row(prompt=1, responses=(1,))
    of_weights = working(folders[3], is_autocast=True, row=short)
    of_weights -= working(folders[1], is_autocast=True, row=short)

    layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * MLP
    assert of_weights >= 2 * 2 * layer
    assert cast < plain + 2 * 2 * layer


def test_a_trained_head_adds_up_a_gradient_of_its_weight(folders):
    whole = working(folders[1])
    adapted = working(folders[1], adapter=AdapterSection(r=2))

    assert whole - adapted >= 4 * 2048 * HIDDEN - 4 * TOKENS * (HIDDEN + MLP) * 20


def test_padded_rows_take_as_much_as_a_flat_row_of_as_many_tokens(folders):
    rows = Row(prompt=6, responses=(10,) * 4)

    padded = per_layer(folders, row=rows, layout="padded")

    assert padded == pytest.approx(per_layer(folders), rel=0.1)


def test_a_model_whose_pass_needs_content_is_refused(tmp_path):
    MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    ).save_pretrained(tmp_path)

    with pytest.raises(UserError, match=r"a pass of MixtralForCausalLM cannot be run without"):
        working(tmp_path)


def test_a_blueprint_can_run_again(folders):
    section = ModelSection.model_validate({"path": str(folders[1])})
    blueprint = draw_up(section, None, torch.float32)
    settings = {"is_autocast": False}

    first = working_memory(blueprint, ROW, is_recomputed=False, **settings)
    assert working_memory(blueprint, ROW, is_recomputed=True, **settings) < first
    assert working_memory(blueprint, ROW, is_recomputed=False, **settings) == first
