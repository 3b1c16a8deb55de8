"""`prefopt diagnose` on runs, checkpoints, adapters and plain models, and what it refuses."""

import json
from unittest.mock import patch

import pytest

from prefopt.cli import main
from prefopt.commands import diagnose
from tests.support.runs import LORA, run
from tests.support.tiny import write_inputs, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("diagnosed"), num_pairs=20, num_lists=12)
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    run(
        folder,
        "full",
        data={"evaluation": {"num_groups": 6}},
        training=training,
        diagnostics={"every": 2, "groups": 4},
    )
    run(folder, "lora", adapter=LORA, training=training)
    return folder


@pytest.fixture
def told(folder, capsys, monkeypatch):
    """Runs the command in the folder; returns its numbers, or its line of error."""
    monkeypatch.chdir(folder)

    def told(*arguments, output="out"):
        with pytest.raises(SystemExit) as ended:
            main(["diagnose", *map(str, arguments), "--output", str(folder / output)])
        said = capsys.readouterr()
        if ended.value.code:
            (line,) = said.err.splitlines()
            return line
        page = (folder / output / "report.html").read_text(encoding="utf-8")
        assert "</html>" in page
        return json.loads((folder / output / "report.json").read_text(encoding="utf-8"))

    return told


def test_a_run_is_measured_on_what_it_held_out_against_what_it_started_from(told, folder):
    found = told(folder / "full", "--verify", "--samples", "4")

    assert found["num_groups"] == found["num_pairs"] == 6
    assert found["objective"]["name"] == "dpo"
    assert found["reference"] == str(folder / "model")
    assert found["num_measured"] == found["num_trainable"] > 0
    assert [line["step"] for line in found["training"]] == [1, 2, 4]
    # The last line was logged after the last step, on the first four of the held-out groups.
    ranking = found["ranking"]
    assert ranking["drift/rejected"]["value"] < 0 < ranking["ranking_gap"]["num"] == 6
    assert ranking["kl"]["num"] == 4
    classes = found["entanglement"]["classes"]
    assert sum(classes.values()) == pytest.approx(1.0)
    assert sum(row["share"] for row in found["entanglement"]["by_part"]) == pytest.approx(1.0)
    verification = found["verification"]
    assert verification["num_responses"] == 12
    assert verification["relative_errors"] == sorted(verification["relative_errors"], reverse=True)
    assert verification["sign_agreement"][-1] >= 0.9
    # What a step of the smallest rate did to the groups that are shown.
    assert found["rate_of_changes"] == verification["learning_rates"][-1]
    for group in found["groups"]:
        assert group["realised"] == pytest.approx(group["predicted"], rel=0.5, abs=2e-3)
    severities = [group["severity"] for group in found["groups"]]
    assert severities == sorted(severities, reverse=True)
    (first, _) = found["token_maps"]
    whole = next(group for group in found["groups"] if group["id"] == first["id"])
    gram, scores = whole["gram"], whole["scores"]
    assert scores in ([1.0, 0.0], [0.0, 1.0])
    assert sum(map(sum, first["products"])) == pytest.approx(gram[0][1], rel=1e-3)


@pytest.mark.slow
def test_a_checkpoint_is_measured_by_the_recipe_beside_it(told, folder):
    found = told(folder / "full" / "checkpoint-2", "objective.beta=0.7", "--groups", "3")

    assert (found["num_groups"], found["objective"]["beta"]) == (3, 0.7)
    earlier = found["ranking"]["drift/chosen"]["value"]
    assert earlier != told(folder / "full", "--groups", "3")["ranking"]["drift/chosen"]["value"]


@pytest.mark.slow
def test_of_an_adapter_only_what_is_trained_is_measured(told, folder):
    found = told(folder / "lora", "--groups", "4", "--token-maps", "0")

    # Three targets in each of two layers, r = 4.
    assert 0 < found["num_measured"] == found["num_trainable"] < 20_000
    assert "Gradients are those of the adapter, which alone is trained." in found["notes"]
    assert found["ranking"]["drift/chosen"]["value"] != 0
    assert {row["part"] for row in found["entanglement"]["by_part"]} == {"attention", "mlp"}


@pytest.mark.slow
def test_any_model_is_measured_on_named_data(told, folder):
    data = ["--data", folder / "lists.jsonl", "--token-maps", "0"]
    alone = told(folder / "model", *data)
    compared = told(folder / "full", *data, "--reference", folder / "model")

    assert alone["num_groups"] == compared["num_groups"] == 12
    assert alone["reference"] is None
    assert any("No reference is known" in note for note in alone["notes"])
    assert alone["learning_rate"] is None
    # Log-ratios of 0: every coefficient of a pair is -beta / 2 or beta / 2, averaged over pairs.
    assert max(map(abs, alone["groups"][0]["coefficients"])) <= 0.05 + 1e-6
    # The same policy in all, and another one.
    assert alone["entanglement"]["cosine"] != compared["entanglement"]["cosine"]


@pytest.mark.slow
def test_what_cannot_be_said_is_left_out_by_name(told, folder):
    found = told(
        folder / "model", "--data", folder / "pairs.jsonl", "--objective", "cringe", "--verify"
    )

    assert found["verification"] is None
    assert found["entanglement"]["classes"] is None
    assert found["entanglement"]["cosine"]["mean"] != 0
    assert any("cringe also learns from whole distributions" in note for note in found["notes"])


@pytest.mark.slow
def test_single_responses_have_no_pairs(told, folder):
    rows = [
        {"prompt": f"say {i}", "completion": "abc" * (1 + i), "label": i % 2 == 0} for i in range(4)
    ]
    write_jsonl(folder / "labels.jsonl", rows)

    found = told(folder / "model", "--data", folder / "labels.jsonl", "--objective", "kto")

    assert found["num_pairs"] == 0
    assert found["entanglement"] is None
    assert found["ranking"] == {}
    assert "4 of 4 groups have one response and no pair." in found["notes"]


def test_a_model_without_data_is_refused(told, folder):
    line = told(folder / "model")

    assert line == f"error: {folder / 'model'} has no recipe.yaml that names data. Add --data FILE."


def test_a_run_that_is_not_finished_is_refused(told, folder):
    (folder / "begun").mkdir()
    (folder / "begun" / "recipe.yaml").write_text((folder / "full" / "recipe.yaml").read_text())

    line = told(folder / "begun")

    assert line.startswith(f"error: {folder / 'begun'} holds a run without a trained model")
    assert "Give one of its checkpoints" in line


def test_samples_without_a_reference_are_refused(told, folder):
    with patch.object(diagnose, "Diagnosis", side_effect=AssertionError("measured too early")):
        line = told(
            folder / "model", "--data", folder / "pairs.jsonl", "--samples", 2, "--objective", "nll"
        )

    assert line == "error: --samples needs a reference to compare with. Add --reference MODEL."
