"""Layouts against each other and against each response alone, for every kind of attention."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import transformers as t
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.data.collate import collate
from prefopt.errors import UserError
from prefopt.models.head import install_logp_head
from prefopt.models.layout import token_logps
from prefopt.models.section import ModelSection
from prefopt.models.self_check import deviation_from_plain
from prefopt.models.support import choose_layout
from tests.support.batches import random_records

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
# Narrower than most texts, so that the window binds in prompts, in responses and between them.
WINDOW = {"sliding_window": 5}
HALF = {"use_sliding_window": True, "max_window_layers": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
FLAT = {
    "llama": t.LlamaConfig(**GROUPED),
    "llama-tied": t.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": t.Qwen2Config(**GROUPED),
    "qwen2-window": t.Qwen2Config(**GROUPED, **HALF, **WINDOW),
    "qwen3": t.Qwen3Config(**GROUPED, head_dim=8),
    "qwen3-window": t.Qwen3Config(**GROUPED, head_dim=8, **HALF, **WINDOW),
    "mistral": t.MistralConfig(**GROUPED, **WINDOW),
    "gemma": t.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": t.Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8, **WINDOW),
    "gemma3": t.Gemma3TextConfig(**GROUPED, head_dim=8, **MIXED, **WINDOW),
    "phi": t.PhiConfig(**SIZES),
    "phi3": t.Phi3Config(**GROUPED),
    "olmo": t.OlmoConfig(**SIZES),
    "olmo2": t.Olmo2Config(**GROUPED),
    "gpt-neox": t.GPTNeoXConfig(**SIZES),
    "gpt2": t.GPT2Config(
        vocab_size=100,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
    ),
    "opt": t.OPTConfig(
        vocab_size=100,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        init_std=0.2,
        dropout=0.0,
    ),
    "granite": t.GraniteConfig(**GROUPED, attention_multiplier=0.2),
    "smollm3": t.SmolLM3Config(**GROUPED),
    "cohere": t.CohereConfig(**GROUPED),
    "starcoder2": t.Starcoder2Config(**GROUPED, **WINDOW),
    "mixtral": t.MixtralConfig(**GROUPED, num_local_experts=4),
    "qwen3-moe": t.Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=8, moe_intermediate_size=24),
    "olmoe": t.OlmoeConfig(**SIZES, **EXPERTS),
    # Sinks in every head.
    "gpt-oss": t.GptOssConfig(
        **GROUPED,
        head_dim=8,
        num_local_experts=4,
        rope_parameters={"rope_type": "default"},
        **WINDOW,
    ),
    # Values are of another size than keys.
    "deepseek-v3": t.DeepseekV3Config(
        **SIZES,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
    ),
}
# Grouped matrix products of experts and Gemma 2's eager attention are in float32 whatever the rest.
NOT_IN_FLOAT64 = {"gemma2", "mixtral", "qwen3-moe", "olmoe", "gpt-oss", "deepseek-v3"}
PLAIN_ATTENTION = {"gemma2", "gpt-oss", "deepseek-v3"}
RECURRENT = {
    "lfm2": (
        t.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"] * 2),
        "layers of conv",
    ),
    "qwen3.5": (
        t.Qwen3_5TextConfig(
            **GROUPED, head_dim=8, layer_types=["linear_attention", "full_attention"] * 2
        ),
        "layers of linear_attention",
    ),
    "mamba": (
        t.MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4),
        "layers of linear_attention",
    ),
    "bloom": (t.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4), "replaced"),
    "falcon": (
        t.FalconConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
        ),
        "replaced",
    ),
    "stablelm": (t.StableLmConfig(**GROUPED), "replaced"),
    "phimoe": (
        t.PhimoeConfig(**GROUPED, num_local_experts=4, sliding_window=8),
        "keeps its sliding window to its masks",
    ),
    "phi3-longrope": (
        t.Phi3Config(
            **GROUPED,
            original_max_position_embeddings=16,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 16,
            },
        ),
        "depend on the longest text of a row",
    ),
}
RECORDS = random_records(6)
NUM_PROMPT = sum(len(r.prompt_ids) for r in RECORDS)
NUM_SCORED = sum(len(ids) for r in RECORDS for ids in r.response_ids)
NUM_COPIES = sum(len(r.prompt_ids) * len(r.response_ids) for r in RECORDS)
NUM_TOKENS = {"shared": NUM_PROMPT + NUM_SCORED, "packed": NUM_COPIES + NUM_SCORED}


def model_of(name: str, layout: str, dtype: torch.dtype) -> t.PreTrainedModel:
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(copy.deepcopy(FLAT[name])).to(dtype)
    for parameter in model.parameters():
        # Biases, norms and sinks start at 0 or 1, where their effect would not be seen.
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.data.mean()), std=0.2)
    install_logp_head(model, layout)
    return model


@contextmanager
def tokens_seen(model: nn.Module) -> Iterator[list[int]]:
    """How many tokens each call of the decoder sees, from outside."""
    seen: list[int] = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield seen
    hook.remove()


class Kernels(TorchDispatchMode):
    """Names of the attention kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "attention" in str(function):
            # Without a mask and not on a square it can only be a response over its prompt.
            kind = "prefix" if args[0].shape[2] != args[1].shape[2] else "square"
            self.names.add(f"{kind} {function.__name__.split('.')[0]}")
        return function(*args, **(kwargs or {}))


def scored(name: str, layout: str, dtype: torch.dtype) -> tuple[torch.Tensor, dict, int]:
    model = model_of(name, layout, dtype).train()
    batch = collate(RECORDS)
    with tokens_seen(model) as seen, Kernels() as kernels:
        logps = token_logps(model, batch)
        # Unequal weights, so that no response can stand for another.
        (logps * torch.linspace(-1, 2, len(logps), dtype=dtype)).sum().backward()
    if layout != "padded":
        cascade = "prefix _scaled_dot_product_flash_attention_for_cpu"
        has_cascade = layout == "shared" and name not in PLAIN_ATTENTION
        assert (cascade in kernels.names) == has_cascade or name in PLAIN_ATTENTION
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    (num_seen,) = seen
    return logps.detach(), gradients, num_seen


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("name", FLAT)
def test_a_flat_row_gives_what_padded_rows_give(name, layout):
    padded, padded_gradients, num_padded = scored(name, "padded", torch.float32)

    logps, gradients, num_seen = scored(name, layout, torch.float32)

    assert num_seen == NUM_TOKENS[layout] < num_padded
    torch.testing.assert_close(logps, padded, rtol=0, atol=1e-5)
    assert gradients.keys() == padded_gradients.keys()
    largest = max(each.norm() for each in padded_gradients.values())
    for tensor, expected in padded_gradients.items():
        error = (gradients[tensor] - expected).norm()
        # A key's bias moves no softmax: its gradient is 0 and all that is found is rounding.
        assert error <= max(1e-5 * expected.norm(), 1e-6 * largest), tensor


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("name", sorted(FLAT.keys() - NOT_IN_FLOAT64))
def test_in_float64_a_row_gives_what_each_response_gives_alone(name, layout):
    model = model_of(name, layout, torch.float64).eval()

    assert deviation_from_plain(model, collate(RECORDS)) < 1e-10


@pytest.mark.parametrize("name", ["llama", "qwen3-window", "gemma2", "gpt2", "gpt-oss"])
def test_checkpointed_layers_change_no_gradient(name):
    batch = collate(RECORDS)
    gradients = []
    for is_checkpointed in (False, True):
        model = model_of(name, "shared", torch.float32).train()
        if is_checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        token_logps(model, batch).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt-oss", "mixtral"])
def test_beside_flat_rows_the_model_computes_and_generates_as_before(name):
    torch.manual_seed(0)
    plain = t.AutoModelForCausalLM.from_config(copy.deepcopy(FLAT[name])).eval()
    ours = copy.deepcopy(plain)
    install_logp_head(ours, "shared")
    ids = torch.tensor([[5, 9, 13, 4, 77, 20, 31, 8], [0, 0, 6, 3, 9, 12, 4, 5]])
    mask = (ids > 0).long()

    for arguments in ({"attention_mask": mask}, {}):
        found, expected = (m(input_ids=ids, **arguments).logits for m in (ours, plain))
        assert torch.equal(found[:, 2:], expected[:, 2:])
    written = [
        m.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        for m in (ours, plain)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize("name", FLAT)
def test_flat_rows_are_chosen_where_they_are_right(name):
    model = t.AutoModelForCausalLM.from_config(copy.deepcopy(FLAT[name]))

    assert choose_layout(model, ModelSection(path="m")) == ("shared", None)
    assert choose_layout(model, ModelSection(path="m", layout="packed")) == ("packed", None)
    assert choose_layout(model, ModelSection(path="m", layout="padded")) == ("padded", None)


@pytest.mark.parametrize("name", RECURRENT)
def test_what_a_flat_row_would_mix_stays_in_padded_rows(name):
    config, reason = RECURRENT[name]
    model = t.AutoModelForCausalLM.from_config(config)

    layout, why_padded = choose_layout(model, ModelSection(path="m"))

    assert layout == "padded"
    assert reason in why_padded
    for asked in ("shared", "packed"):
        with pytest.raises(
            UserError, match=f"^model.layout: {asked} is not possible, since .*{reason}"
        ):
            choose_layout(model, ModelSection(path="m", layout=asked))
    install_logp_head(model, "padded")
    assert deviation_from_plain(model.eval(), collate(random_records(2))) < 1e-4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"dropout": True}, "dropout"), ({"attn_implementation": "eager"}, "asks for eager")],
)
def test_what_the_recipe_asks_for_keeps_rows_padded(changes, reason):
    model = t.AutoModelForCausalLM.from_config(copy.deepcopy(FLAT["llama"]))

    layout, why_padded = choose_layout(model, ModelSection(path="m", **changes))

    assert layout == "padded"
    assert reason in why_padded


def test_a_model_whose_source_is_not_there_keeps_rows_padded():
    model = t.AutoModelForCausalLM.from_config(copy.deepcopy(FLAT["llama"]))

    with patch("inspect.getsource", side_effect=OSError("could not get source code")):
        layout, why_padded = choose_layout(model, ModelSection(path="m"))

    assert layout == "padded"
    assert why_padded == "the source of LlamaForCausalLM is not there to be read"


def test_state_that_flows_through_a_row_is_found_at_the_start():
    model = t.AutoModelForCausalLM.from_config(RECURRENT["lfm2"][0]).eval()
    install_logp_head(model, "shared")

    assert deviation_from_plain(model, collate(RECORDS)) > 1e-2


def test_attention_that_is_not_told_of_the_row_is_refused():
    model = t.AutoModelForCausalLM.from_config(RECURRENT["stablelm"][0])
    install_logp_head(model, "shared")

    with pytest.raises(UserError, match=r"^model\.layout: StableLmAttention is not told where"):
        token_logps(model, collate(RECORDS))


def test_a_window_that_a_layer_keeps_to_itself_is_refused():
    model = model_of("qwen3-window", "shared", torch.float32)
    model.model.layers[3].self_attn.sliding_window = None

    with pytest.raises(UserError, match=r"of layer 3 does not say how wide its window is"):
        token_logps(model, collate(RECORDS))


def test_a_mask_that_a_model_makes_itself_is_refused():
    model = model_of("llama", "shared", torch.float32)
    attention = model.model.layers[0].self_attn
    forward = attention.forward

    def with_own_mask(*args, **kwargs):
        kwargs["attention_mask"] = torch.zeros(1, 1, 112, 112)
        return forward(*args, **kwargs)

    attention.forward = with_own_mask
    with pytest.raises(UserError, match=r"LlamaAttention asks for a mask of its own"):
        token_logps(model, collate(RECORDS))


def test_dropout_in_attention_is_refused():
    model = model_of("llama", "shared", torch.float32).train()
    model.model.layers[0].self_attn.attention_dropout = 0.1

    with pytest.raises(UserError, match=r"LlamaAttention asks for dropout"):
        token_logps(model, collate(RECORDS))


def test_a_saved_model_knows_nothing_of_rows(tmp_path):
    model = model_of("llama", "shared", torch.float32)

    model.save_pretrained(tmp_path)

    assert "prefopt" not in (tmp_path / "config.json").read_text()
    again = t.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 13]])
    assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
