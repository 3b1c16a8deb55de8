"""The Gram is that of gradients taken one response at a time, whatever the layers."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers as t
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from prefopt.data.collate import collate
from prefopt.diagnostics.gram import GramMeter
from prefopt.models.head import install_logp_head
from prefopt.models.layout import token_logps
from tests.models.test_architectures import FLAT, NOT_IN_FLOAT64, RECORDS, RECURRENT

# peft's own, of GPT-2's layers.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
GROUP = next(record for record in RECORDS if len(record.response_ids) == 3)


def model_of(config, layout, dtype=torch.float64):
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(copy.deepcopy(config)).to(dtype)
    for parameter in model.parameters():
        # Biases, norms and sinks start at 0 or 1, where much of a gradient would be 0.
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.data.mean()), std=0.2)
    install_logp_head(model, layout)
    return model


def explicit(model, batch, weights=1.0):
    """By one backward pass for each response's log-prob, per parameter."""
    logps = batch.sum_over_tokens(token_logps(model, batch) * weights)[0]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = [
        torch.autograd.grad(
            logp, list(named.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for logp in logps
    ]
    expected = {}
    for name, of_each in zip(named, zip(*gradients, strict=True), strict=True):
        rows = torch.stack(of_each).flatten(1).double()
        expected[name] = rows @ rows.T
    return expected


def check(model, batch, tolerance, weights=None):
    expected = explicit(model, batch, 1.0 if weights is None else weights)
    found = GramMeter(model).measure(batch, weights)
    assert found.missing == ()
    zero = torch.zeros_like(found.total)
    whole = sum(expected.values())
    size = whole.diagonal().sqrt()
    bound = tolerance * size[:, None] * size
    assert (found.total - whole).abs().le(bound).all()
    for name, part in expected.items():
        assert (found.of_parameter.get(name, zero) - part).abs().le(bound).all(), name
    assert all(parameter.grad is None for parameter in model.parameters())


PACKED = ["llama-tied", "qwen2-window", "gemma2", "gemma3", "gpt-oss", "mixtral", "deepseek-v3"]
PADDED = ["qwen2", "gpt2", "opt"]


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, "packed") for name in PACKED] + [(name, "padded") for name in PADDED],
)
def test_layers_of_all_kinds_have_the_gram_of_explicit_gradients(name, layout):
    dtype = torch.float32 if name in NOT_IN_FLOAT64 else torch.float64
    model = model_of(FLAT[name], layout, dtype)

    check(model, collate([GROUP]), 1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("name", RECURRENT)
def test_so_has_an_architecture_that_mixes_tokens_outside_attention(name):
    model = model_of(RECURRENT[name][0], "padded", torch.float32).eval()

    check(model, collate([GROUP]), 1e-4)


def with_adapter(model, **changes):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **changes}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            # It starts at 0, where the gradient of A is 0 as well.
            nn.init.normal_(parameter, std=0.3)
    return adapted.double()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"bias": "all"},
        {"modules_to_save": ["norm"]},
    ],
    ids=str,
)
def test_so_has_an_adapter(changes):
    model = with_adapter(model_of(FLAT["qwen2"], "packed"), **changes)

    check(model, collate([GROUP]), 1e-10)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama-tied", "packed"),
        ("gemma3", "packed"),
        ("mixtral", "packed"),
        # Whose parameters fall to modules around the layers that are computed again.
        ("gpt2", "padded"),
        ("gpt-oss", "padded"),
    ],
)
@pytest.mark.parametrize("is_adapted", [False, True])
def test_layers_that_are_computed_again_count_once(name, layout, is_adapted):
    dtype = torch.float32 if name in NOT_IN_FLOAT64 else torch.float64
    model = model_of(FLAT[name], layout, dtype).train()
    target = "c_proj" if name == "gpt2" else "q_proj"
    adapted = with_adapter(model, target_modules=[target]).to(dtype) if is_adapted else model
    plain = GramMeter(adapted).measure(collate([GROUP]))
    if is_adapted:
        model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": False})

    found = GramMeter(adapted).measure(collate([GROUP]))

    assert model.is_gradient_checkpointing
    torch.testing.assert_close(found.total, plain.total, rtol=1e-6, atol=1e-8)
    assert found.missing == ()


def test_dropout_is_off_and_comes_back_also_where_layers_are_computed_again():
    config = copy.deepcopy(FLAT["opt"])
    # OPT's layers drop values themselves.
    config.dropout = 0.5
    expected = GramMeter(model_of(FLAT["opt"], "padded")).measure(collate([GROUP])).total
    model = model_of(config, "padded").train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    state = torch.get_rng_state()

    found = GramMeter(model).measure(collate([GROUP])).total

    torch.testing.assert_close(found, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(layer.training and layer.dropout == 0.5 for layer in model.model.decoder.layers)


@pytest.mark.slow
# peft's own, of Conv1D and of experts that it does not find.
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("is_recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("is_adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", FLAT)
def test_every_architecture_in_every_way(name, is_tied, is_adapted, is_recomputed):
    dtype = torch.float32 if name in NOT_IN_FLOAT64 else torch.float64
    config = copy.deepcopy(FLAT[name])
    config.tie_word_embeddings = is_tied
    model = model_of(config, "packed", dtype).train()
    if is_recomputed:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": False})
    if is_adapted:
        # Not all of them: experts are no linear layers, and the head takes no adapter.
        layers = [n for n, m in model.named_modules() if type(m) in (nn.Linear, Conv1D)]
        targets = [n for n in layers if model.get_submodule(n) is not model.get_output_embeddings()]
        model = with_adapter(model, target_modules=targets).to(dtype)

    check(model, collate([GROUP]), 1e-4 if dtype == torch.float32 else 1e-10)


def test_a_response_may_be_a_weighted_sum_of_its_tokens():
    batch = collate([GROUP])
    weights = torch.linspace(-1, 2, len(batch.targets), dtype=torch.float64)

    check(model_of(FLAT["gemma2"], "packed"), batch, 1e-6, weights)
    check(model_of(FLAT["llama-tied"], "padded"), batch, 1e-10, weights)


@pytest.mark.parametrize("length", [2, 40])
def test_the_head_comes_out_the_same_by_either_of_its_two_ways(length):
    """With few scored tokens products of tokens are cheaper, with many whole gradients are."""
    record = replace(
        GROUP, response_ids=tuple(ids.repeat(40)[:length] for ids in GROUP.response_ids)
    )
    model = model_of(FLAT["gpt2"], "padded")

    check(model, collate([record]), 1e-10)


def test_log_probs_come_from_the_same_pass():
    model, batch = model_of(FLAT["llama"], "packed"), collate([GROUP])

    found = GramMeter(model).measure(batch)

    torch.testing.assert_close(found.token_logps, token_logps(model, batch))
    assert not found.token_logps.requires_grad


def test_one_meter_measures_groups_of_all_sizes():
    model = model_of(FLAT["gpt2"], "padded")
    meter = GramMeter(model)

    for record in RECORDS:
        whole = sum(explicit(model, collate([record])).values())
        torch.testing.assert_close(meter.measure(collate([record])).total, whole)


def test_products_in_bfloat16_are_close_to_those_in_float32():
    model, batch = model_of(FLAT["llama"], "packed", torch.float32), collate([GROUP])
    expected = GramMeter(model).measure(batch).total

    found = GramMeter(model.to(torch.bfloat16)).measure(batch).total

    size = expected.diagonal().sqrt()
    # 8 bits of mantissa.
    assert ((found - expected).abs() <= 0.05 * size[:, None] * size).all()


def test_what_answers_for_no_token_is_named():
    model = model_of(FLAT["llama"], "packed")
    model.register_parameter("temperature", nn.Parameter(torch.ones(())))
    model.model.layers[0].mlp.forward = lambda hidden: hidden.sum() * hidden

    found = GramMeter(model).measure(collate([GROUP]))

    assert found.missing == ("temperature",)


def test_a_frozen_model_is_refused():
    model = model_of(FLAT["llama"], "packed").requires_grad_(False)

    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        GramMeter(model)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_several_groups_at_once_have_products_across_groups(layout):
    model, batch = model_of(FLAT["gpt2"], layout), collate(RECORDS)
    logps = batch.sum_over_tokens(token_logps(model, batch))[batch.where]
    parameters = list(model.parameters())
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(x, parameters, retain_graph=True)])
            for x in logps
        ]
    )

    found = GramMeter(model).measure(batch).total

    torch.testing.assert_close(found, rows @ rows.T)
