"""Steps whose loss or gradient is not finite: written down, stopped at, or left out."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.objectives.dpo import DPO
from prefopt.train.guard import NonFiniteLossError, StepGuard
from prefopt.train.metrics import LogWindow
from prefopt.train.step_record import StepRecord
from prefopt.types import ObjectiveInputs, ObjectiveOutput, Term
from tests.support.runs import logged, run
from tests.support.tiny import save_tiny_model, write_jsonl

HUGE_SCORE = 9


class Exploding(DPO):
    """DPO whose loss is infinite for groups with a huge score."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        output = super().__call__(inputs)
        bad = (inputs.scores == HUGE_SCORE).any(dim=1)
        return ObjectiveOutput(
            losses=output.losses + torch.where(bad, torch.inf, 0.0),
            counted=output.counted,
            rewards=output.rewards,
            metrics={},
        )


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    return tmp_path


def write_steps(folder, *, bad_steps=(), steps=range(1, 7)):
    """Two groups a step, the second of which explodes in some."""
    rows = [
        {
            "prompt": f"p{step}{which}",
            "responses": ["ab" * step, "cd"],
            "scores": [HUGE_SCORE if step in bad_steps and which else 1, 0],
        }
        for step in steps
        for which in (0, 1)
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    return rows


def train(folder, output="run", *, resume=None, **training):
    settings = {"groups_per_step": 2, "shuffle": False, "max_steps": 6, "learning_rate": 1e-2}
    schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 8}
    return run(
        folder,
        output,
        objective=Exploding(),
        training={**settings, **schedule, **training},
        resume=resume,
    )


def strict(text):
    """JSON without the extensions that Python reads."""
    return json.loads(text, parse_constant=pytest.fail)


def logp_by_hand(folder, prompt, response):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer(prompt, add_special_tokens=False).input_ids
    response = tokenizer(response, add_special_tokens=False).input_ids
    ids = torch.tensor([[*prompt, *response, tokenizer.eos_token_id]])
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum().item(), len(response) + 1


def test_the_step_is_written_down_with_the_log_probs_of_its_groups(folder):
    rows = write_steps(folder, bad_steps=[1])

    with pytest.raises(NonFiniteLossError) as error:
        train(folder)

    file = folder / "run" / "non_finite-step-1.json"
    assert str(error.value).startswith("step 1: the loss is not finite, by pairs.jsonl:2 (inf);")
    assert f"Its numbers are in {file}." in str(error.value)
    dump = strict(file.read_text())
    assert dump["step"] == 1
    assert dump["versions"]["torch"] == torch.__version__
    assert "'Infinity'" in dump["about"]
    groups = sorted(dump["groups"], key=lambda group: group["record"])
    assert [group["record"] for group in groups] == ["pairs.jsonl:1", "pairs.jsonl:2"]
    assert groups[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert groups[1]["loss"] == "Infinity"
    for group, row in zip(groups, rows[:2], strict=True):
        for each, text, score in zip(
            group["responses"], row["responses"], row["scores"], strict=True
        ):
            logp, num_tokens = logp_by_hand(folder, row["prompt"], text)
            # Nothing has been learned yet, so policy and reference agree.
            assert each["policy_logp"] == pytest.approx(logp, abs=1e-4)
            assert each["reference_logp"] == pytest.approx(logp, abs=1e-4)
            assert (each["num_tokens"], each["score"]) == (num_tokens, score)
    assert not (folder / "run" / ".saving" / file.name).exists()


def test_a_run_that_leaves_a_step_out_is_one_whose_data_lacks_it(folder, capsys):
    write_steps(folder, bad_steps=[3])
    left_out = train(folder, "left_out", max_skipped_steps=1)
    write_steps(folder, steps=[1, 2, 4, 5, 6])
    without = train(folder, "without", max_steps=5)

    for name, expected in without.model.state_dict().items():
        assert torch.equal(left_out.model.state_dict()[name], expected)
    for key in ("loss", "grad_norm", "rewards/margins"):
        assert logged(left_out, key) == logged(without, key)
    # Step 3 is logged with the learning rate that step 4 then takes.
    rates = logged(without, "learning_rate")
    assert logged(left_out, "learning_rate") == [*rates[:3], *rates[2:]]
    assert logged(left_out, "train_loss") == logged(without, "train_loss")
    assert logged(left_out, "skipped_steps") == [1.0] * 4
    lines = (folder / "left_out" / "metrics.jsonl").read_text().splitlines()
    assert [strict(line)["step"] for line in lines][:6] == [1, 2, 3, 4, 5, 6]
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(said) == 1
    assert said[0].startswith("step 3 is left out, 1 of at most 1: the loss is not finite, by ")
    assert (folder / "left_out" / "non_finite-step-3.json").exists()


@pytest.mark.slow
def test_steps_that_were_left_out_still_count_after_resuming(folder):
    write_steps(folder, bad_steps=[2, 5])
    saves = {"save_strategy": "steps", "save_steps": 3}
    with pytest.raises(NonFiniteLossError, match=r"step 5: .* Steps left out before: 1\."):
        train(folder, max_skipped_steps=1, **saves)

    with pytest.raises(NonFiniteLossError, match=r"step 5: .* Steps left out before: 1\."):
        train(folder, max_skipped_steps=1, resume="auto", **saves)
    trainer = train(folder, max_skipped_steps=2, resume="auto", **saves)

    assert trainer.window.num_skipped == 2
    assert logged(trainer, "skipped_steps")[-1] == 2.0


def meet(guard, *, losses=(1.0, 2.0), terms=None, is_loss_finite=False):
    """Have the guard look at two groups whose responses do not matter."""
    record, numbers = StepRecord(), torch.zeros(2, 1)
    inputs = ObjectiveInputs(
        policy_logps=numbers,
        reference_logps=None,
        num_tokens=numbers.long(),
        scores=numbers,
        where=torch.ones(2, 1, dtype=torch.bool),
    )
    output = ObjectiveOutput(
        losses=torch.tensor(losses),
        counted=torch.ones(2, dtype=torch.bool),
        rewards=numbers,
        metrics={},
        terms=terms,
    )
    record.add(("first", "second"), inputs, output)
    window = LogWindow()
    guard.leave_out(1, record, window, is_loss_finite=is_loss_finite, grad_norm=None)
    return window


def test_a_record_is_named_for_a_term_of_its_loss(tmp_path):
    term = Term(losses=torch.tensor([torch.nan, 0.0]), weight=torch.ones(2))
    said = []

    meet(StepGuard(tmp_path, max_skipped=1, say=said.append), terms={"0.kl.loss": term})

    assert "the loss is not finite, by first (1.0). " in said[0]
    (file,) = tmp_path.glob("*.json")
    assert strict(file.read_text())["groups"][0]["terms"] == {"0.kl.loss": "NaN"}


def test_a_disk_that_holds_no_more_keeps_the_line_and_says_so(tmp_path):
    nowhere = tmp_path / "removed"

    with pytest.raises(NonFiniteLossError, match=r"by second \(inf\); .* could not be written to"):
        meet(StepGuard(nowhere, max_skipped=0, say=print), losses=(1.0, torch.inf))
