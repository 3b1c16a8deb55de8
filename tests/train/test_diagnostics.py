"""What a recipe's diagnostics log, on one process, and that they change nothing else."""

import json
from pathlib import Path

import pytest
import torch

from prefopt.train.diagnostics import START_FILE
from tests.support.runs import LORA, logged, policy, run, snapshot
from tests.support.tiny import write_inputs, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("diagnostics"), num_pairs=20, num_lists=12)


def lines_of(trainer):
    file = Path(trainer.args.output_dir) / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if "diagnostics/seconds" in line]


def test_no_update_depends_on_them(folder):
    plain = run(folder, "plain", training={"max_steps": 5})
    measured = run(
        folder, "measured", training={"max_steps": 5}, diagnostics={"every": 2, "groups": 3}
    )

    assert logged(measured, "loss") == logged(plain, "loss")
    after, before = snapshot(policy(measured)), snapshot(policy(plain))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [line["step"] for line in lines_of(measured)] == [1, 2, 4, 5]
    assert "diagnostics/" not in (folder / "measured" / "README.md").read_text()


@pytest.mark.slow
def test_no_draw_of_dropout_depends_on_them_either(folder):
    settings = {
        "model": {"dropout": True},
        "adapter": {**LORA, "dropout": 0.3},
        "objective": {"name": "dr_dpo"},
        # Several micro-batches, so that a pass for statistics comes first.
        "training": {"max_steps": 3, "tokens_per_micro_batch": 120, "learning_rate": 1e-2},
    }
    plain = run(folder, "dropped", **settings)
    measured = run(folder, "dropped-too", **settings, diagnostics={"every": 1, "groups": 3})

    assert logged(measured, "loss") == logged(plain, "loss")
    assert lines_of(measured)[-1]["diagnostics/gradient_norm/chosen"] > 0


def test_groups_that_do_not_fit_are_left_out_with_a_line(folder, capsys):
    trainer = run(
        folder,
        "tight",
        training={"tokens_per_micro_batch": 1},
        diagnostics={"every": 1, "groups": 3},
    )

    assert "diagnostics: no group of this step is looked at" in capsys.readouterr().out
    assert lines_of(trainer) == []


def test_plain_gradient_descent_on_one_group_does_what_is_predicted(folder):
    trainer = run(
        folder,
        "sgd",
        training={
            "max_steps": 3,
            "groups_per_step": 1,
            "optim": "sgd",
            "learning_rate": 1.0e-3,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
        },
        diagnostics={"every": 1, "groups": 1},
    )

    for line in lines_of(trainer):
        for kind in ("chosen", "rejected"):
            predicted = line[f"diagnostics/predicted/{kind}"]
            assert line[f"diagnostics/realised/{kind}"] == pytest.approx(predicted, rel=0.1)
        assert line["diagnostics/sign_agreement"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [{"name": "lipo"}, {"name": "kto"}, {"name": "cringe"}, {"name": "dr_dpo"}],
    ids=lambda objective: objective["name"],
)
def test_objectives_of_all_kinds_are_measured(folder, objective, capsys):
    rows = [
        {"prompt": f"say {i}", "completion": "abc" * (1 + i), "label": i % 2 == 0} for i in range(8)
    ]
    write_jsonl(folder / "labels.jsonl", rows)
    is_labelled = objective["name"] in ("kto", "cringe")
    data = "labels.jsonl" if is_labelled else "lists.jsonl"

    trainer = run(
        folder,
        objective["name"],
        data={"sources": [{"path": str(folder / data)}]},
        objective=objective,
        diagnostics={"every": 1, "groups": 4},
    )

    said = capsys.readouterr().out
    first, last = lines_of(trainer)
    assert ("since there are no pairs" in said) == is_labelled
    assert ("cringe also learns from whole distributions" in said) == (
        objective["name"] == "cringe"
    )
    assert ("diagnostics/cosine" in last) == (not is_labelled)
    assert ("diagnostics/predicted/chosen" in last) == (not is_labelled)
    assert ("diagnostics/ranking_accuracy" in last) == (not is_labelled)
    assert "% of the time of training" in said
    assert first["diagnostics/seconds"] < last["diagnostics/seconds"]


@pytest.mark.slow
def test_what_is_measured_of_a_coupled_objective_knows_the_whole_step(folder):
    """Of one micro-batch, which needs no statistics of its own, and of several."""
    settings = {
        "objective": {"name": "dr_dpo", "beta_prime": 0.01},
        "training": {"max_steps": 3, "learning_rate": 1e-2},
        "diagnostics": {"every": 1, "groups": 3},
    }
    whole = run(folder, "at-once", **settings)
    settings["training"]["tokens_per_micro_batch"] = 120
    split = run(folder, "split", **settings)
    plain = run(folder, "uncoupled", **{**settings, "objective": {"name": "dpo"}})

    keys = ["diagnostics/predicted/chosen", "diagnostics/predicted/rejected"]
    for ours, theirs in zip(lines_of(split), lines_of(whole), strict=True):
        assert [ours[key] for key in keys] == pytest.approx([theirs[key] for key in keys], rel=1e-3)
    # A group alone would have all of the weight, as with dpo.
    assert lines_of(split)[1][keys[0]] != pytest.approx(lines_of(plain)[1][keys[0]], rel=0.05)


@pytest.mark.slow
def test_drifts_go_on_from_where_the_run_began(folder):
    training = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
    settings = {"adapter": LORA, "training": training, "diagnostics": {"every": 3, "groups": 4}}
    expected = lines_of(run(folder, "whole", **settings))[-1]

    resumed = run(folder, "whole", resume=str(folder / "whole" / "checkpoint-3"), **settings)

    assert (folder / "whole" / START_FILE).is_file()
    found = lines_of(resumed)
    assert [line["step"] for line in found] == [1, 3, 6]
    del found[-1]["diagnostics/seconds"], expected["diagnostics/seconds"]
    assert found[-1] == expected
    assert expected["diagnostics/drift/rejected"] < 0


@pytest.mark.slow
def test_a_run_that_began_without_them_has_no_drift(folder, capsys):
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    run(folder, "without", training=training)

    resumed = run(
        folder,
        "without",
        resume=str(folder / "without" / "checkpoint-2"),
        training=training,
        diagnostics={"every": 2, "groups": 4},
    )

    assert (
        "diagnostics: no drift, since the run began without these groups" in capsys.readouterr().out
    )
    (line,) = lines_of(resumed)
    assert "diagnostics/drift/chosen" not in line
    assert "diagnostics/ranking_accuracy" in line
