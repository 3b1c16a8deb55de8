import pytest
import torch
from transformers import LlamaForSequenceClassification

from prefopt.errors import UserError
from tests.support.judge_server import judge_of, pair
from tests.support.tiny import character_tokenizer, save_tiny_model, tiny_config


def save(folder, *, num_labels=1, chat_template=None):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForSequenceClassification(tiny_config(num_labels=num_labels))
    model.save_pretrained(folder)
    tokenizer = character_tokenizer() if chat_template is None else character_tokenizer(None)
    tokenizer.save_pretrained(folder)
    return str(folder), model.eval(), tokenizer


def test_the_probability_is_that_of_bradley_and_terry(tmp_path):
    path, model, _ = save(tmp_path)
    # The template of the tiny tokenizer, written out.
    texts = ["<u>Say yes.<a>yes<eos>", "<u>Say yes.<a>never<eos>"]
    ids = [character_tokenizer()(text, return_tensors="pt").input_ids for text in texts]
    with torch.no_grad():
        rewards = [model(each).logits[0, 0] for each in ids]

    with judge_of(backend="reward_model", model=path, device="cpu") as judge:
        reply = judge.ask(pair("yes", "never"))
        swapped = judge.ask(pair("never", "yes"))

        assert judge.num_forwards == 2
    assert reply.probs[0] == pytest.approx(float(torch.sigmoid(rewards[0] - rewards[1])), abs=1e-6)
    assert sum(reply.probs) == 1.0
    assert (reply.probs[0] + swapped.probs[1]) / 2 == pytest.approx(reply.probs[0], abs=1e-12)


def test_an_answer_that_is_too_long_is_missing_and_not_cut(tmp_path):
    path, _, _ = save(tmp_path)
    with judge_of(backend="reward_model", model=path, device="cpu", max_length=15) as judge:
        reply = judge.ask(pair("yes", "x" * 20))

    # <u>, 8 characters, <a>, 20 characters and <eos>.
    assert reply.status == "parse_error"
    assert reply.problem == "prompt and answer have 31 tokens, the model takes 15"


def test_what_is_no_reward_model_is_refused(tmp_path):
    many, _, _ = save(tmp_path / "many", num_labels=3)
    bare, _, _ = save(tmp_path / "bare", chat_template="none")
    causal = save_tiny_model(tmp_path / "causal")
    for path, message in (
        (many, "has 3 logits, a reward model has one"),
        (bare, "has no chat template"),
        (str(causal), "lacks score.weight: it is no reward model"),
        (str(tmp_path / "absent"), "no folder"),
    ):
        with (
            pytest.raises(UserError, match=message),
            judge_of(backend="reward_model", model=path, device="cpu"),
        ):
            pass
