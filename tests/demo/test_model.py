import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from prefopt.demo.model import build_model, build_tokenizer, gold_of_samples, save_start
from prefopt.demo.task import generate, held_out_prompts, right_response


@pytest.fixture(autouse=True)
def _no_progress_bars():
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_the_tokenizer_maps_each_character_to_one_token_and_back():
    tokenizer = build_tokenizer()

    for row in generate(50, seed=0):
        for text in (row["prompt"], *row["responses"]):
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text)
            assert tokenizer.decode(ids) == text


def test_a_prompt_and_its_response_tokenise_as_their_concatenation():
    tokenizer = build_tokenizer()

    whole = tokenizer("kteaoz:" + "aeoktz")["input_ids"]

    assert whole == tokenizer("kteaoz:")["input_ids"] + tokenizer("aeoktz")["input_ids"]


def test_special_tokens_are_distinct_and_known_to_the_model():
    tokenizer = build_tokenizer()
    model = build_model(seed=0)

    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len({*ids, tokenizer.unk_token_id}) == 4
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == ids
    assert model.config.vocab_size == len(tokenizer)


def test_the_model_is_small_and_decided_by_its_seed():
    torch.manual_seed(7)
    undisturbed = torch.rand(3)
    torch.manual_seed(7)

    model = build_model(seed=0)

    assert torch.equal(torch.rand(3), undisturbed)
    assert model.num_parameters() < 1_000_000
    assert same_weights(model, build_model(seed=0))
    assert not same_weights(model, build_model(seed=1))


def test_the_saved_start_loads_with_plain_transformers(tmp_path):
    save_start(tmp_path, seed=5)

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    assert same_weights(model, build_model(seed=5))
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.special_tokens_map == build_tokenizer().special_tokens_map
    assert tokenizer.decode(tokenizer("kteaoz:")["input_ids"]) == "kteaoz:"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_generation_gives_one_gold_score_per_prompt_and_disturbs_nothing():
    model = build_model(seed=0).train()
    tokenizer = build_tokenizer()
    prompts = held_out_prompts(7, seed=0)
    state = torch.get_rng_state()

    for sample in (True, False):
        scores = gold_of_samples(model, tokenizer, prompts, sample=sample, seed=1, batch_size=3)

        assert len(scores) == 7
        assert all(0.0 <= score <= 1.0 for score in scores)
        again = gold_of_samples(model, tokenizer, prompts, sample=sample, seed=1, batch_size=3)
        assert again == scores
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_a_model_that_knows_one_answer_scores_one_on_it():
    model = build_model(seed=0)
    tokenizer = build_tokenizer()
    prompt = "kteaoz:"
    ids = tokenizer(prompt + right_response(prompt) + tokenizer.eos_token, return_tensors="pt")
    labels = ids["input_ids"].clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(input_ids=ids["input_ids"], labels=labels).loss.backward()
        optimizer.step()

    assert gold_of_samples(model, tokenizer, [prompt, prompt], sample=False) == [1.0, 1.0]
