"""The trainer's step, evaluation and guards, on tiny models."""

import json
import math
from typing import ClassVar
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefopt.commands.parts as train_parts
from prefopt.data.plan import StepPlan
from prefopt.errors import UserError
from prefopt.objectives.base import Needs
from prefopt.objectives.dpo import DPO
from prefopt.train.guard import NonFiniteLossError
from prefopt.train.steps import StepDataset
from prefopt.types import ObjectiveInputs, ObjectiveOutput
from tests.support.runs import logged, run
from tests.support.slow import slow_but
from tests.support.tiny import save_tiny_model, write_jsonl, write_lists, write_pairs


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    return tmp_path


class Exploding(DPO):
    """DPO whose loss is not a number for groups with a score above 5."""

    needs_reference: ClassVar[bool] = True
    needs: ClassVar[Needs] = "preferred_pairs"

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        output = super().__call__(inputs)
        bad = (inputs.scores > 5).any(dim=1)
        return ObjectiveOutput(
            losses=output.losses * torch.where(bad, torch.nan, 1.0).to(output.losses.dtype),
            counted=output.counted,
            rewards=output.rewards,
            metrics={},
        )


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_record(folder):
    rows = [
        {"prompt": "abc", "responses": ["d", "e"], "scores": [9 if i == 3 else 1, 0]}
        for i in range(6)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = []

    def load_and_keep(*args, **kwargs):
        kept.append(load_policy(*args, **kwargs))
        return kept[0]

    load_policy = train_parts.load_policy

    with (
        patch.object(train_parts, "load_policy", load_and_keep),
        pytest.raises(NonFiniteLossError, match=r"pairs\.jsonl:4 \(nan\)"),
    ):
        run(folder, objective=Exploding(), training={"groups_per_step": 6})

    start = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    for name, parameter in kept[0].named_parameters():
        assert torch.equal(parameter, start[name])


def test_an_infinite_gradient_stops_before_the_update(folder):
    class Steep(Exploding):
        def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
            output = DPO.__call__(self, inputs)
            # sqrt has an infinite slope at 0, and a finite value.
            edge = (output.losses - output.losses.detach()).abs().sqrt()
            return ObjectiveOutput(
                losses=output.losses + edge,
                counted=output.counted,
                rewards=output.rewards,
                metrics={},
            )

    with pytest.raises(NonFiniteLossError, match="gradient norm is"):
        run(folder, objective=Steep())


def test_the_logged_loss_of_the_first_step_is_that_of_a_plain_loop(folder):
    # Policy and reference agree, so every pair costs -logsigmoid(0) = ln 2.
    trainer = run(folder, training={"shuffle": False, "max_steps": 1})

    assert logged(trainer, "loss") == pytest.approx([math.log(2)], abs=1e-6)
    assert logged(trainer, "rewards/accuracies") == [0.0]


def _evaluation_by_hand(folder, policy_folder):
    """Mean DPO loss over all pairs, one response at a time, with plain transformers."""
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        for path in (policy_folder, folder / "model")
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    losses = []
    for line in (folder / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        ratios = []
        for side in ("chosen", "rejected"):
            response = tokenizer(row[side], add_special_tokens=False).input_ids
            ids = torch.tensor([[*prompt, *response, tokenizer.eos_token_id]])
            sums = []
            for model in models:
                with torch.no_grad():
                    logps = model(ids).logits[0, :-1].log_softmax(-1)
                chosen = logps.gather(1, ids[0, 1:, None]).squeeze(1)
                sums.append(chosen[len(prompt) - 1 :].sum())
            ratios.append(sums[0] - sums[1])
        losses.append(-F.logsigmoid(0.1 * (ratios[0] - ratios[1])))
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("tokens_per_micro_batch", [1, 100_000])
def test_evaluation_equals_a_plain_loop_over_single_responses(folder, tokens_per_micro_batch):
    trainer = run(
        folder,
        model={"dtype": "float64"},
        data={"evaluation": {"sources": [{"path": str(folder / "pairs.jsonl")}]}},
        training={
            "max_steps": 4,
            "tokens_per_micro_batch": tokens_per_micro_batch,
            "eval_strategy": "steps",
            "eval_steps": 4,
        },
    )

    by_hand = _evaluation_by_hand(folder, folder / "run")
    assert logged(trainer, "eval_loss") == pytest.approx([by_hand], rel=1e-9)


@pytest.mark.parametrize("tokens_per_micro_batch", [1, 100_000])
@pytest.mark.parametrize("name", slow_but(["dr_dpo"], ["dr_dpo", "kto"]))
def test_evaluation_couples_the_groups_as_a_step_does(folder, name, tokens_per_micro_batch):
    save_tiny_model(folder / "other", seed=1)

    trainer = run(
        folder,
        objective={"name": name},
        model={"path": str(folder / "other"), "dtype": "float64"},
        reference={"path": str(folder / "model")},
        data={"evaluation": {"sources": [{"path": str(folder / "pairs.jsonl")}]}},
        training={
            "max_steps": 1,
            "groups_per_step": 12,
            "shuffle": False,
            "learning_rate": 0.0,
            "tokens_per_micro_batch": tokens_per_micro_batch,
            "eval_strategy": "steps",
            "eval_steps": 1,
        },
    )

    # The same groups in the same order, and nothing was learnt between.
    assert logged(trainer, "eval_loss") == pytest.approx(logged(trainer, "loss"), rel=1e-12)
    if name == "kto":
        assert logged(trainer, "eval_baseline") == logged(trainer, "baseline")
        assert logged(trainer, "baseline")[0] > 0.1


def held_out(trainer, positions, **split):
    """Some groups of the training data as one step to evaluate."""
    store = trainer.train_dataset.store.subset(positions)
    plan = StepPlan(
        records_per_source=(len(store),),
        source_weights=(1.0,),
        groups_per_step=len(store),
        seed=0,
        shuffle=False,
    )
    # A micro-batch holds two rows of at most 10 tokens: one group of a prompt and such texts.
    return StepDataset(
        store, plan, trainer.objective, tokens_per_micro_batch=20, layout="padded", **split
    )


TEXTS = ("abcdefgh", "bcdefgh", "cdefgh")


def test_a_filler_adds_nothing_to_an_evaluation(folder):
    save_tiny_model(folder / "other", seed=1)
    rows = [{"prompt": "p", "chosen": text, "rejected": "z"} for text in TEXTS]
    write_jsonl(folder / "pairs.jsonl", rows)
    trainer = run(
        folder,
        model={"dtype": "float64"},
        reference={"path": str(folder / "other")},
        training={"max_steps": 1, "groups_per_step": 3},
    )

    # The longest group goes to the first rank, the others to the second: the first has one less.
    first = held_out(trainer, [0, 1, 2], rank=0, num_ranks=2)
    assert (first[0, 0].num_real, len(first[0, 0].micro_batches)) == (1, 2)
    # With no second process to add its own, a sum over processes is that of the first alone.
    alone = held_out(trainer, [0], rank=0, num_ranks=1)
    assert trainer.evaluate(first) == pytest.approx(trainer.evaluate(alone), rel=1e-12)


def test_an_epoch_takes_every_group_and_a_last_short_step(folder):
    # 12 groups in steps of 5 are 3 steps an epoch: 5, 5 and 2.
    trainer = run(folder, training={"groups_per_step": 5, "max_steps": -1, "num_train_epochs": 2})

    assert trainer.state.global_step == 6
    assert trainer.state.epoch == 2.0


def test_training_stops_early_when_evaluation_gets_no_better(folder):
    # At learning rate 0 no evaluation is better than the first, so patience 2 ends with the third.
    trainer = run(
        folder,
        data={"evaluation": {"num_groups": 3}},
        training={
            "learning_rate": 0.0,
            "max_steps": 20,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "early_stopping_patience": 2,
            "logging_steps": 2,
        },
    )

    assert trainer.state.global_step == 3
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    logs = [json.loads(line) for line in lines]
    assert [log["step"] for log in logs if "learning_rate" in log] == [2, 3]


def test_the_best_model_is_kept_at_the_end(folder):
    # A huge learning rate makes every later evaluation worse than the first.
    trainer = run(
        folder,
        objective={"name": "nll", "of": "all"},
        data={"evaluation": {"num_groups": 3}},
        training={
            "learning_rate": 3.0,
            "lr_scheduler_type": "constant",
            "max_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
        },
    )

    losses = logged(trainer, "eval_loss")
    best = 1 + losses.index(min(losses))
    assert trainer.state.best_model_checkpoint == str(folder / "run" / f"checkpoint-{best}")
    final = AutoModelForCausalLM.from_pretrained(folder / "run").state_dict()
    kept = AutoModelForCausalLM.from_pretrained(folder / "run" / f"checkpoint-{best}").state_dict()
    assert all(torch.equal(final[name], kept[name]) for name in kept)
    assert len(list((folder / "run").glob("checkpoint-*"))) <= 2


def test_an_architecture_that_changes_its_logits_is_refused(folder):
    load_policy = train_parts.load_policy

    def load_and_scale(*args, **kwargs):
        model = load_policy(*args, **kwargs)
        forward = model.forward

        def scaled(*forward_args, **forward_kwargs):
            output = forward(*forward_args, **forward_kwargs)
            if hasattr(output, "logits"):
                output.logits = output.logits * 0.5
            return output

        model.forward = scaled
        return model

    with (
        patch.object(train_parts, "load_policy", load_and_scale),
        pytest.raises(UserError, match=r"log-probs differ by .* nats"),
    ):
        run(folder)


def test_lists_train_on_all_their_preferred_pairs(folder):
    write_lists(folder / "pairs.jsonl", 6)

    trainer = run(folder, training={"max_steps": 1, "groups_per_step": 6})

    # The reference is the policy, so each of the six pairs of a list costs ln 2.
    assert logged(trainer, "loss") == pytest.approx([math.log(2)], abs=1e-6)
