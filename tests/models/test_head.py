"""The log-prob head: exact for every architecture that it knows, and found out where it is not."""

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from prefopt.errors import UserError
from prefopt.models.head import check_head, install_logp_head
from prefopt.models.layout import token_logps
from prefopt.models.self_check import deviation_from_plain
from prefopt.ops.logps import target_logps
from tests.support.batches import batch_of_row

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.5,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
CONFIGURATIONS = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES),
    # Soft-capped at 3, where the random model's logits are: 30 would hardly be noticed.
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=3.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.3),
    "cohere2": Cohere2Config(**SIZES, logit_scale=0.3),
    "granite": GraniteConfig(**SIZES, logits_scaling=4.0),
    # The projection has a bias.
    "phi": PhiConfig(**{**SIZES, "num_key_value_heads": 2}),
    "gpt2": GPT2Config(
        vocab_size=61,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=1,
    ),
    # Embeddings narrower than the layers: hidden states are projected before the head.
    "opt": OPTConfig(
        vocab_size=61,
        hidden_size=16,
        word_embed_proj_dim=8,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        init_std=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    ),
}
ARCHITECTURES = pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


def model_of(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """Random weights, and a random bias of the projection if it has one."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    bias = model.get_output_embeddings().bias
    if bias is not None:
        nn.init.normal_(bias)
    return model


def tokens(num: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, 61, (1, num), generator=generator)


@ARCHITECTURES
def test_log_probs_equal_those_of_the_plain_logits(config: PreTrainedConfig):
    model = model_of(config)
    ids = tokens()
    plain = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
    expected = plain.gather(1, ids[0, 1:, None]).squeeze(1)

    install_logp_head(model)
    logps = token_logps(model, batch_of_row(ids))

    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-12)
    assert deviation_from_plain(model, batch_of_row(ids)) < 1e-12


@ARCHITECTURES
def test_in_float32_the_head_stays_within_1e5th_of_a_nat(config: PreTrainedConfig):
    model = model_of(config).float()
    install_logp_head(model)

    assert deviation_from_plain(model, batch_of_row(tokens())) < 1e-5


@ARCHITECTURES
def test_all_weights_get_the_gradient_of_the_plain_model(config: PreTrainedConfig):
    plain, scored = model_of(config), model_of(config)
    install_logp_head(scored)
    ids = tokens()

    token_logps(scored, batch_of_row(ids)).sum().backward()

    target_logps(plain(input_ids=ids).logits[0, :-1], ids[0, 1:]).sum().backward()
    for (name, ours), theirs in zip(scored.named_parameters(), plain.parameters(), strict=True):
        assert theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10, msg=name)


@ARCHITECTURES
def test_without_targets_the_model_behaves_as_before(config: PreTrainedConfig):
    plain, scored = model_of(config), model_of(config)
    install_logp_head(scored)
    ids = tokens()

    assert torch.equal(scored(input_ids=ids).logits, plain(input_ids=ids).logits)
    with torch.no_grad():
        written = [
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
            )
            for model in (scored, plain)
        ]
    assert torch.equal(*written)


def scores(model: nn.Module) -> torch.Tensor:
    """Log-probs of the tokens after the first."""
    ids = tokens()
    return token_logps(model, batch_of_row(ids))


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "phi"])
@pytest.mark.parametrize("is_adapted", [False, True], ids=["full", "lora"])
def test_a_copy_computes_with_its_own_weights(
    name: str, copied: Callable[[nn.Module], nn.Module], is_adapted: bool
):
    model = model_of(CONFIGURATIONS[name])
    install_logp_head(model)
    model = with_lora(model) if is_adapted else model
    before = scores(model).detach()

    other = copied(model)
    assert torch.equal(scores(other), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)

    assert torch.equal(scores(model), before)
    assert (scores(other) - before).abs().max() > 1e-3
    # Its plain logits are its own as well.
    assert deviation_from_plain(other, batch_of_row(tokens())) < 1e-12
    scores(other).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_copy_has_the_head_that_is_checked():
    model = model_of(CONFIGURATIONS["llama"])
    install_logp_head(model)

    check_head(copy.deepcopy(model))
    check_head(pickled(model))

    model.get_output_embeddings().forward = lambda hidden: hidden
    with pytest.raises(UserError, match=r"^adapter: the output projection cannot carry"):
        check_head(model)


def test_the_signature_is_that_of_the_model():
    plain, scored = model_of(CONFIGURATIONS["llama"]), model_of(CONFIGURATIONS["llama"])
    install_logp_head(scored)

    assert inspect.signature(scored.forward) == inspect.signature(plain.forward)


def test_a_projection_in_bfloat16_gives_float32_log_probs():
    model = model_of(CONFIGURATIONS["llama"]).bfloat16()
    install_logp_head(model)
    ids = tokens()

    logps = token_logps(model, batch_of_row(ids))

    assert logps.dtype == torch.float32


def test_a_change_of_logits_that_the_head_does_not_know_is_found():
    model = model_of(CONFIGURATIONS["llama"])
    plain = model.forward

    def with_temperature(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = with_temperature
    install_logp_head(model)

    assert deviation_from_plain(model, batch_of_row(tokens())) > 0.1


def test_a_model_without_output_projection_is_refused():
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )

    with pytest.raises(UserError, match=r"^model\.path: BertModel has no output projection"):
        install_logp_head(BertModel(config))


def with_lora(model: PreTrainedModel, **changes: object) -> nn.Module:
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], **changes}
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))


def test_an_adapter_beside_the_head_is_scored_as_it_is():
    model = model_of(CONFIGURATIONS["llama"])
    install_logp_head(model)
    adapted = with_lora(model)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)

    check_head(model)

    assert deviation_from_plain(adapted, batch_of_row(tokens())) < 1e-12


@pytest.mark.parametrize(
    "changes",
    [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}],
    ids=["adapted", "saved"],
)
def test_an_adapter_on_the_head_is_refused(changes: dict[str, object]):
    model = model_of(CONFIGURATIONS["llama"])
    install_logp_head(model)

    with_lora(model, **changes)

    with pytest.raises(UserError, match=r"^adapter: the output projection cannot carry"):
        check_head(model)
