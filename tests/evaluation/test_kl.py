"""KL on a policy's own answers, against its exact value by enumeration of all answers."""

import math

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from prefopt.errors import UserError
from prefopt.evaluation.kl import SampleKl, kl_numbers, sample_and_score, score_both
from prefopt.models.load import prepare_for_scoring
from prefopt.models.section import ModelSection
from tests.support.tiny import character_tokenizer

TOKENIZER = character_tokenizer()
END = TOKENIZER.eos_token_id


def model_of(seed: int, *, vocabulary: int = 3, layout: str = "auto") -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).double()
    prepare_for_scoring(model, ModelSection(path="none", dtype="float64", layout=layout))
    return model.eval()


def logps_after(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(0)


def exact_kl(policy, reference, prompt: list[int], length: int) -> float:
    """Sum over all answers of pi log(pi / ref); an answer ends with END or at the length."""

    def below(answer: list[int], logp: float, ratio: float) -> float:
        if len(answer) == length or answer[-1:] == [END]:
            return math.exp(logp) * ratio
        own, other = (logps_after(each, prompt + answer) for each in (policy, reference))
        return sum(
            below(
                [*answer, token],
                logp + own[token].item(),
                ratio + own[token].item() - other[token].item(),
            )
            for token in range(len(own))
        )

    return below([], 0.0, 0.0)


def test_both_estimates_find_the_exact_kl_of_answers():
    policy, reference = (model_of(seed, layout="padded") for seed in (0, 1))
    prompts = [("short", [0]), ("long", [2, 0, 2, 2])]
    exact = sum(exact_kl(policy, reference, ids, 3) for _, ids in prompts) / 2

    rows = sample_and_score(
        policy, reference, TOKENIZER, prompts, num_samples=800, max_new_tokens=3, batch_size=800
    )

    def error(values: list[float]) -> float:
        spread = torch.tensor(values, dtype=torch.float64)
        assert abs(spread.mean().item() - exact) < 4 * spread.std().item() / math.sqrt(len(values))
        return spread.std().item()

    plain = error([row.policy_logp - row.reference_logp for row in rows])
    blackwell = error([row.divergence for row in rows])
    assert exact > 0.1
    assert blackwell < 0.7 * plain
    assert min(row.divergence for row in rows) >= 0


def test_answers_are_drawn_from_the_policy_at_temperature_1():
    policy = model_of(0, layout="padded")
    # What transformers would mix in from the model's own settings.
    policy.generation_config = GenerationConfig(
        eos_token_id=END, temperature=0.1, top_k=1, repetition_penalty=3.0, suppress_tokens=[0]
    )
    prompts = [("short", [0]), ("long", [2, 0, 2, 2])]

    rows = sample_and_score(
        policy, policy, TOKENIZER, prompts, num_samples=1200, max_new_tokens=1, batch_size=1200
    )

    for name, ids in prompts:
        drawn = [round(row.policy_logp, 9) for row in rows if row.prompt_id == name]
        for logp in logps_after(policy, ids).tolist():
            share = drawn.count(round(logp, 9)) / len(drawn)
            error = math.sqrt(math.exp(logp) * (1 - math.exp(logp)) / len(drawn))
            assert abs(share - math.exp(logp)) < 4 * error
    assert policy.generation_config.repetition_penalty == 3.0


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_scores_are_those_of_one_answer_at_a_time(layout):
    policy, reference = model_of(0, layout=layout), model_of(1, layout=layout)
    prompts, answers = [[0], [2, 0, 2, 2]], [[2, 0, END], [0, 0]]

    found = score_both(policy, reference, prompts, answers)

    for prompt, answer, numbers in zip(prompts, answers, found, strict=True):
        expected = [0.0, 0.0, 0.0]
        for position, token in enumerate(answer):
            before = prompt + answer[:position]
            own, other = logps_after(policy, before), logps_after(reference, before)
            expected[0] += own[token].item()
            expected[1] += other[token].item()
            expected[2] += (own.exp() * (own - other)).sum().item()
        assert numbers == pytest.approx(expected, abs=1e-12)


def test_a_policy_that_is_its_reference_has_no_kl():
    policy = model_of(0)

    rows = sample_and_score(
        policy, model_of(0), TOKENIZER, [("a", [0]), ("b", [2])], num_samples=2, max_new_tokens=4
    )

    assert [row.divergence for row in rows] == pytest.approx([0.0] * 4, abs=1e-12)
    assert kl_numbers(rows)["kl"]["value"] == pytest.approx(0, abs=1e-12)


def test_samples_come_in_the_order_of_prompts_and_are_those_of_the_seed_in_any_batch():
    policy, reference = model_of(0), model_of(1)
    prompts = [("long", [2, 0, 2, 2]), ("short", [0])]

    def rows(seed: int, batch_size: int = 16) -> list[SampleKl]:
        settings = {"num_samples": 9, "max_new_tokens": 5, "batch_size": batch_size}
        return sample_and_score(policy, reference, TOKENIZER, prompts, seed=seed, **settings)

    first = rows(0)
    assert [(r.prompt_id, r.sample) for r in first] == [
        (name, k) for name in ("long", "short") for k in range(9)
    ]
    lengths = [row.num_tokens for row in first]
    assert lengths == [row.num_tokens for row in rows(0, batch_size=5)]
    assert first == rows(0)
    assert first != rows(1)


def test_numbers_are_means_over_samples_and_over_tokens():
    def row(prompt: str, num_tokens: int, ratio: float, divergence: float, cut: bool) -> SampleKl:
        return SampleKl(
            prompt_id=prompt,
            sample=0,
            num_tokens=num_tokens,
            policy_logp=ratio - 1,
            reference_logp=-1.0,
            divergence=divergence,
            is_cut=cut,
        )

    rows = [row("a", 2, 3.0, 2.0, False), row("a", 4, -1.0, 1.0, True), row("b", 4, 1.0, 3.0, True)]
    found = kl_numbers(rows)

    value = {name: each["value"] for name, each in found.items()}
    assert value == {
        "kl": 2.0,
        "kl_per_token": pytest.approx(6 / 10),
        "kl/plain": 1.0,
        "kl_per_token/plain": pytest.approx(3 / 10),
        "num_tokens": pytest.approx(10 / 3),
        "share_cut": pytest.approx(2 / 3),
    }
    assert (found["kl"]["n"], found["kl"]["unit"]) == (3, "samples")


def test_another_vocabulary_is_refused():
    with pytest.raises(UserError, match="has 5 tokens where the policy has 3"):
        sample_and_score(
            model_of(0),
            model_of(1, vocabulary=5),
            TOKENIZER,
            [("a", [0])],
            num_samples=1,
            max_new_tokens=1,
        )
