"""Bytes of a GPU under each mode, by hand and against what torch really allocates."""

from dataclasses import replace

import pytest
import torch

from prefopt.models.blueprint import Counts
from prefopt.train.footprint import (
    MODES,
    Optimizer,
    Pass,
    Precision,
    Split,
    bytes_sent,
    footprint,
    head_memory,
    optimizer_of,
)

FULL = Counts(
    trained=1000,
    frozen=0,
    quantized=0,
    body=800,
    head=200,
    adapter=0,
    attention_width=1,
    largest_layer=100,
    largest_layer_trained=100,
)
LORA = replace(FULL, trained=40, frozen=1000, adapter=40, largest_layer_trained=4)
FLOAT32 = Precision(stored=4, trained=4, is_bf16=False)
MIXED = Precision(stored=4, trained=4, is_bf16=True)
NARROW = Precision(stored=2, trained=4, is_bf16=True)
"""An adapter in float32 on weights in bfloat16."""
ADAM = Optimizer(num_states=2)
PASS = Pass(activations=5000, head=300)


def split(mode, **changes) -> Split:
    settings = {
        "mode": mode,
        "num_gpus": 4,
        "precision": FLOAT32,
        "optimizer": ADAM,
        "num_micro_batches": 2,
        "bucket": 10,
    }
    return Split(**{**settings, **changes})


def test_a_single_gpu_holds_weights_gradients_and_two_states():
    found = footprint(FULL, split("single", num_gpus=1), PASS)

    assert (found.weights, found.gradients, found.optimizer) == (4000, 4000, 8000)
    assert found.total == 4000 + 4000 + 8000 + 5000 + 300


def test_those_are_the_bytes_of_a_real_model_gradient_and_optimiser():
    model = torch.nn.Linear(24, 40)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 24)).sum().backward()
    optimizer.step()
    num = 24 * 40 + 40

    found = footprint(replace(FULL, trained=num), split("single"), PASS)

    weights = list(model.parameters())
    states = [t for state in optimizer.state.values() for k, t in state.items() if k != "step"]
    assert found.weights == sum(w.nbytes for w in weights)
    assert found.gradients == sum(w.grad.nbytes for w in weights)
    assert found.optimizer == sum(t.nbytes for t in states)


def test_ddp_reduces_gradients_in_a_copy():
    found = footprint(FULL, split("ddp"), PASS)

    assert (found.weights, found.gradients, found.optimizer) == (4000, 2 * 4000, 8000)


@pytest.mark.parametrize(("mode", "gradients"), [("zero1", 2 * 1000), ("zero2", 2 * 250)])
def test_zero_1_and_2_split_masters_states_and_gradients(mode, gradients):
    found = footprint(FULL, split(mode, precision=MIXED), PASS)

    # bfloat16 weights whole; a float32 master and two states of a quarter.
    assert (found.weights, found.gradients) == (2 * 1000, gradients)
    assert found.optimizer == 250 * (4 + 4 + 4)
    assert found.engine == 2 * 10


def test_zero_3_splits_all_and_gathers_weights_again():
    found = footprint(FULL, split("zero3", precision=MIXED), PASS)

    assert (found.weights, found.gradients) == (2 * 250, 2 * 250)
    assert found.optimizer == 250 * (4 + 4 + 4)
    # A bucket, and the same laid out by who owns it.
    assert found.engine == 2 * 1000 + 2 * 2 * 10


def test_zero_3_in_float32_needs_no_masters():
    assert footprint(FULL, split("zero3"), PASS).optimizer == 250 * (4 + 4)


def test_zero_3_gathers_no_more_weights_than_its_limit():
    large = replace(FULL, trained=8_000_000_000)

    found = footprint(large, split("zero3", precision=MIXED), PASS)

    assert found.engine == 2 * 1_000_000_000 + 2 * 2 * 10


def test_offloading_moves_weights_gradients_and_states_to_the_host():
    found = footprint(FULL, split("zero3_offload", precision=MIXED), PASS)

    assert found.weights == found.gradients == found.optimizer == 0
    # A bfloat16 weight, master, two states, a bfloat16 and a float32 gradient of a quarter.
    assert found.host == 250 * (2 + 4 + 8 + 2 + 4)


def test_fsdp2_keeps_gradients_whole_until_the_last_of_several_micro_batches():
    several = footprint(FULL, split("fsdp2", precision=MIXED), PASS)
    one = footprint(FULL, split("fsdp2", precision=MIXED, num_micro_batches=1), PASS)

    assert several.weights == one.weights == 4 * 250
    assert several.optimizer == 8 * 250
    assert one.gradients == 4 * 250
    assert several.gradients == 2 * 1000
    # Two layers and the projection in bfloat16, and the gradients of two layers.
    assert one.engine == 2 * (2 * 100 + 200) + 2 * 2 * 100


def test_a_share_is_rounded_up():
    found = footprint(FULL, split("zero3", num_gpus=3), PASS)

    assert found.gradients == 4 * 334


def test_an_adapter_has_gradients_and_states_of_its_own_weights_alone():
    found = footprint(LORA, split("single", precision=NARROW), PASS)

    assert found.weights == 2 * 1000 + 4 * 40
    assert (found.gradients, found.optimizer) == (4 * 40, 8 * 40)


def test_weights_in_4_bits_take_half_a_byte_and_their_scales():
    quantized = replace(LORA, quantized=900)

    found = footprint(quantized, split("single", precision=NARROW), PASS)

    # Blocks of 64 have a byte, and 256 of those a float32.
    assert found.weights == 2 * 100 + round(900 * (0.5 + 1 / 64 + 4 / 16384)) + 4 * 40


def test_a_copy_of_the_reference_is_split_only_where_weights_are():
    copies = {m: footprint(FULL, split(m, reference_weights=500), PASS).reference for m in MODES}

    assert copies["ddp"] == copies["zero1"] == copies["zero2"] == 4 * 500
    assert copies["zero3"] == copies["fsdp2"] == 4 * 125


def test_the_optimisers_copies_count_once_activations_are_gone():
    foreach = Optimizer(num_states=2, num_copies=1)
    small, large = replace(PASS, activations=0, head=0), replace(PASS, activations=10**6)

    kept = 4000 + 4000 + 8000
    alone = split("single", optimizer=foreach)
    assert footprint(FULL, alone, small).total == kept + 4000
    assert footprint(FULL, alone, large).total == kept + 10**6 + 300


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("adamw_torch_fused", 8),
        ("adamw_torch", 8),
        ("paged_adamw_32bit", 8),
        ("paged_adamw_8bit", 2),
        ("adamw_bnb_8bit", 2),
        ("sgd", 0),
    ],
)
def test_optimisers_are_known_by_their_names(name, kept):
    found, is_known = optimizer_of(name)

    assert is_known
    assert found.kept(4) == kept


def test_an_unknown_optimiser_is_counted_as_adamw_and_said_so():
    assert optimizer_of("something_new") == (optimizer_of("adamw_torch_fused")[0], False)


def test_the_head_holds_a_tile_of_logits_and_what_it_adds_up():
    vocabulary, hidden = 50, 4

    trained = head_memory(FULL, hidden=hidden, scored=30, tile=8, is_cast=False)
    frozen = head_memory(LORA, hidden=hidden, scored=5, tile=8, is_cast=True)

    assert trained == 4 * 8 * vocabulary + 4 * 30 * hidden + 4 * vocabulary * hidden
    # Fewer tokens than a tile; float32 logits beside the bfloat16 ones; no gradient of weights.
    assert frozen == (4 + 2) * 5 * vocabulary + 4 * 5 * hidden


def test_bytes_sent_are_those_of_rings():
    def sent(mode, **changes):
        return bytes_sent(FULL, split(mode, precision=MIXED, **changes))

    # Three quarters of everything; gradients and weights in bfloat16, but of DDP.
    assert sent("single", num_gpus=1) == 0
    assert sent("ddp") == 2 * 4000 * 3 // 4
    assert sent("zero1") == (2000 + 2000) * 3 // 4
    assert sent("zero2") == (2 * 2000 + 2000) * 3 // 4
    assert sent("zero3") == 2 * (2 * 2000 + 2000) * 3 // 4
    assert sent("fsdp2") == (2 * 2 * 2000 + 2000) * 3 // 4


def test_a_pass_without_gradient_gathers_weights_once_more():
    zero3 = split("zero3", precision=MIXED)

    more = bytes_sent(FULL, zero3, num_forward_passes=1) - bytes_sent(FULL, zero3)

    assert more == 2 * 2000 * 3 // 4
