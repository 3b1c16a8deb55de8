"""Gradients of one length: what a step then does to a pair, and that no split changes it."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefopt.data.collate import collate, records_of
from prefopt.train.normalise import factors_of
from tests.models.test_architectures import RECORDS
from tests.support.runs import LORA, recipe, run
from tests.support.tiny import write_inputs, write_pairs


def test_factors_make_all_lengths_their_geometric_mean():
    norms = torch.tensor([2.0, 8.0])

    # sqrt(2 * 8) = 4.
    torch.testing.assert_close(factors_of(norms) * norms, torch.tensor([4.0, 4.0]))
    assert factors_of(torch.tensor([0.0, 8.0])).tolist() == [1.0, 1.0]


def test_records_of_a_micro_batch_are_those_that_it_was_made_of():
    for ours, theirs in zip(records_of(collate(RECORDS)), RECORDS, strict=True):
        assert ours.id == theirs.id
        assert ours.scores == pytest.approx(theirs.scores)
        assert ours.prompt_ids.tolist() == theirs.prompt_ids.tolist()
        assert [i.tolist() for i in ours.response_ids] == [i.tolist() for i in theirs.response_ids]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("normalised"), num_pairs=12, num_lists=12)


def change_of(folder, output, data="pairs.jsonl", **training):
    """What one step of plain gradient descent makes of the weights."""
    settings = {
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "learning_rate": 1.0e-2,
        "normalise_gradients": True,
        **training,
    }
    run(folder, output, data={"sources": [{"path": str(folder / data)}]}, training=settings)
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(folder / output / "model.safetensors")
    return torch.cat([(after[name] - before[name]).double().flatten() for name in before])


@pytest.mark.parametrize(
    "data", ["pairs.jsonl", pytest.param("lists.jsonl", marks=pytest.mark.slow)]
)
def test_no_split_of_a_step_changes_the_update(folder, data):
    whole = change_of(folder, f"whole-{data}", data)

    # One response at a time: groups go through in pieces.
    pieces = change_of(folder, f"pieces-{data}", data, tokens_per_micro_batch=1)
    assert (pieces - whole).norm() <= 1e-4 * whole.norm()
    plain = change_of(folder, f"plain-{data}", data, normalise_gradients=False)
    assert (plain - whole).norm() > 1e-2 * whole.norm()


def test_a_step_on_a_pair_is_along_the_difference_of_unit_gradients(folder):
    write_pairs(folder / "pair.jsonl", 1)
    found = change_of(folder, "pair", "pair.jsonl", groups_per_step=1)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    record = run(folder, "again", data={"sources": [{"path": str(folder / "pair.jsonl")}]})
    record = record.train_dataset.store[0]

    gradients = []
    for response in record.response_ids:
        ids = torch.cat([record.prompt_ids, response])
        logps = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], dim=1)
        logp = logps[torch.arange(len(ids) - 1), ids[1:]][-len(response) :].sum()
        each = torch.autograd.grad(logp, list(model.parameters()))
        gradients.append(torch.cat([g.double().flatten() for g in each]))
    first, second = gradients
    chosen, rejected = (first, second) if record.scores[0] > record.scores[1] else (second, first)
    # At the start DPO's coefficients are -beta / 2 and beta / 2, with beta 0.1.
    size = (chosen.norm() * rejected.norm()).sqrt()
    direction = chosen / chosen.norm() - rejected / rejected.norm()
    names = [name for name, _ in model.named_parameters()]
    stored = list(load_file(folder / "model" / "model.safetensors"))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    parts = dict(
        zip(names, (1e-2 * 0.05 * size * direction).split(list(sizes.values())), strict=True)
    )
    expected = torch.cat([parts[name] for name in stored])
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.slow
def test_an_adapter_has_it_too(folder):
    trainer = run(
        folder, "lora", adapter=LORA, training={"normalise_gradients": True, "max_steps": 2}
    )

    assert trainer.state.global_step == 2


def test_what_learns_from_whole_distributions_is_refused(folder):
    with pytest.raises(ValidationError, match=r"normalise_gradients does not go with cringe"):
        recipe(folder, objective={"name": "cringe"}, training={"normalise_gradients": True})
