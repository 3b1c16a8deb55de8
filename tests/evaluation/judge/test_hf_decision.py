import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.errors import UserError
from prefopt.evaluation.judge.runner import run_judge
from tests.support.judge_server import judge_of, pair, score
from tests.support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model"), seed=1))


def test_probabilities_are_those_of_the_labels_next_token_logits(folder):
    with judge_of(backend="hf_decision", model=folder, device="cpu") as judge:
        reply = judge.ask(pair())
        [(inputs, _)] = judge._decide.preprocess(judge._questions.system_one(pair()))["prompts"]
        tokenizer = judge._decide.tokenizer

    # Independently: the model itself, and a softmax over the logits of A and B.
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(inputs["input_ids"]).logits[
            0, -1, tokenizer.convert_tokens_to_ids(["A", "B"])
        ]
    assert reply.probs[:2] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    assert sum(reply.probs) == pytest.approx(1.0)


def test_a_random_model_goes_by_the_slot_and_both_orders_come_out_near_one_half(folder, tmp_path):
    with judge_of(backend="hf_decision", model=folder, device="cpu") as judge:
        found = run_judge(judge, [(pair(), "a", "b")], [], tmp_path / "j.jsonl")

    one, other = found
    assert (one.system, other.system) == ("a", "b")
    assert abs(one.win - 0.5) > 0.01
    # What is left of the answers' content is the tiny model's response to other letters.
    assert (one.win + 1 - other.win) / 2 == pytest.approx(0.5, abs=0.1)


def test_a_score_has_a_probability_per_level(folder):
    with judge_of(backend="hf_decision", model=folder, device="cpu", levels=[1, 2, 3]) as judge:
        reply = judge.ask(score())

    assert len(reply.probs) == 3
    assert sum(reply.probs) == pytest.approx(1.0)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"judge\.model: cannot load"),
        judge_of(backend="hf_decision", model=str(tmp_path), device="cpu"),
    ):
        pass


def test_a_device_that_is_not_there_is_refused(folder):
    with (
        pytest.raises(UserError, match=r"judge\.device: cannot use 'cuda:99'"),
        judge_of(backend="hf_decision", model=folder, device="cuda:99"),
    ):
        pass
