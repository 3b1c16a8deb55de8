"""`prefopt evaluate` on runs, checkpoints, adapters and plain models, and what it refuses."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from prefopt.cli_evaluate import evaluate
from prefopt.commands.evaluate import cell
from prefopt.errors import UserError
from prefopt.models.load import load_policy
from prefopt.models.section import ModelSection
from prefopt.models.tokenizer import load_tokenizer
from tests.support.runs import LORA, run
from tests.support.tiny import write_inputs, write_jsonl
from tests.support.tofu import write_tofu


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model that was never trained, and data."""
    folder = write_inputs(tmp_path_factory.mktemp("evaluated"), num_pairs=20, num_lists=12)
    write_tofu(folder, num=3)
    return folder


@pytest.fixture(scope="module")
def folder(inputs):
    """The same with three runs."""
    folder = inputs
    training = {"max_steps": 3, "learning_rate": 1e-2}
    run(folder, "full", training=training)
    run(folder, "simpo", objective={"name": "simpo"}, training=training)
    run(folder, "lora", adapter=LORA, training=training)
    return folder


@pytest.fixture
def told(inputs, monkeypatch):
    """Runs the command in the folder; returns what it prints, or its line of error."""
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("PREFOPT_CACHE", str(inputs / "cache"))
    monkeypatch.setenv("COLUMNS", "250")

    def told(*arguments):
        done = CliRunner().invoke(evaluate, list(map(str, arguments)))
        if isinstance(done.exception, UserError):
            return str(done.exception)
        assert done.exception is None, done.output
        return done.output

    return told


def saved(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_pairs_are_ranked_by_all_models_side_by_side(told, folder):
    models = ["full", "simpo", "lora", "model"]
    said = told("pairs", *models, "--data", "pairs.jsonl", "--reference", "model")

    rows = [line for line in said.splitlines() if "implicit_reward_accuracy" in line]
    assert len(rows) == 1
    assert rows[0].count("[") == 4
    found = saved(folder / "evaluation" / "pairs.json")
    assert [each["name"] for each in found["models"]] == models
    assert [each["objective"] and each["objective"]["name"] for each in found["models"]] == [
        "dpo",
        "simpo",
        "dpo",
        None,
    ]
    numbers = {each["name"]: each["numbers"] for each in found["models"]}
    for each in numbers.values():
        assert each["implicit_reward_accuracy"]["n"] == found["num_groups"] == 20
        # The floor is the same for all.
        floor = "ranking_accuracy/reference"
        assert each[floor] == numbers["model"][floor] == numbers["model"]["ranking_accuracy"]
    # A model against itself: all ties.
    assert numbers["model"]["implicit_reward_accuracy"]["value"] == 0.5
    assert "objective_accuracy" not in numbers["model"]
    full, simpo = numbers["full"], numbers["simpo"]
    assert full["objective_accuracy"] == full["implicit_reward_accuracy"]
    # SimPO's reward is the mean log-prob of a token.
    assert simpo["objective_accuracy"] == simpo["ranking_accuracy/per_token"]


@pytest.mark.slow
def test_pairs_have_the_log_probs_of_plain_transformers(told, folder):
    told("pairs", "full", "--data", "pairs.jsonl")

    tokenizer = load_tokenizer(ModelSection(path="model"))
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    drifts = []
    models = [load_policy(ModelSection(path=path), None) for path in ("full", "model")]
    for row in rows:
        prompt = tokenizer.encode(row["prompt"])
        ids = [*prompt, *tokenizer.encode(row["chosen"]), tokenizer.eos_token_id]
        logps = []
        for model in models:
            with torch.no_grad():
                whole = model(torch.tensor([ids])).logits[0].double().log_softmax(1)
            targets = torch.tensor(ids[len(prompt) :])
            of_targets = whole[len(prompt) - 1 : -1].gather(1, targets[:, None])
            logps.append(of_targets.sum().item())
        drifts.append(logps[0] - logps[1])
    found = saved(folder / "evaluation" / "pairs.json")["models"][0]
    value = found["numbers"]["drift/chosen"]["value"]
    assert value == pytest.approx(sum(drifts) / len(drifts), abs=1e-4)
    assert found["reference"] == str(folder / "model")


@pytest.mark.slow
def test_accuracy_is_told_by_subset_where_a_column_or_several_files_say_it(told, folder):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    named = [{**row, "subset": "ab"[i % 2]} for i, row in enumerate(rows)]
    write_jsonl(folder / "named.jsonl", named)

    told("pairs", "full", "--data", "named.jsonl", "--subset", "subset")
    numbers = saved(folder / "evaluation" / "pairs.json")["models"][0]["numbers"]
    parts = [numbers[f"accuracy_by_subset/{name}"] for name in "ab"]
    assert [each["n"] for each in parts] == [10, 10]
    mean = sum(each["value"] for each in parts) / 2
    assert numbers["accuracy_by_subset/mean"]["value"] == pytest.approx(mean)

    told("pairs", "full", "--data", "pairs.jsonl", "--data", "lists.jsonl")
    numbers = saved(folder / "evaluation" / "pairs.json")["models"][0]["numbers"]
    assert numbers["accuracy_by_subset/pairs.jsonl"]["n"] == 20
    assert numbers["accuracy_by_subset/lists.jsonl"]["n"] == 12 * 6
    assert "no value in a column 'kind'" in told(
        "pairs", "full", "--data", "named.jsonl", "--subset", "kind"
    )


@pytest.mark.slow
def test_models_are_compared_on_the_pairs_that_all_can_read(told, folder):
    rows = [{"prompt": "a", "chosen": "b" * n, "rejected": "c"} for n in (2, 60, 3)]
    write_jsonl(folder / "long.jsonl", rows)
    run(folder, "short", data={"max_length": 40}, training={"max_steps": 1})

    said = told("pairs", "full", "short", "--data", "long.jsonl")

    assert "1 groups are left out" in said
    found = saved(folder / "evaluation" / "pairs.json")
    assert [each["numbers"]["ranking_accuracy"]["n"] for each in found["models"]] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_kl_of_a_run_is_to_what_it_started_from(told, folder, name):
    said = told("kl", name, "--prompts", "pairs.jsonl", "--samples", 3, "--max-new-tokens", 8)

    found = saved(folder / name / "evaluation" / "kl.json")
    assert "kl_per_token" in said
    assert found["reference"] == str(folder / "model")
    assert found["numbers"]["kl"]["n"] == len(found["samples"]) == 60
    assert found["numbers"]["kl"]["low"] > 0
    assert found["notes"][-1].endswith("cut at 8 tokens; the KL is that of answers up to there.")


@pytest.mark.slow
def test_the_kl_of_a_model_to_itself_is_0(told, folder):
    told(
        *("kl", "model", "--reference", "model", "--prompts", "pairs.jsonl"),
        *("--samples", 1, "--max-prompts", 4, "--max-new-tokens", 5, "--output", "own"),
    )

    found = saved(folder / "own" / "kl.json")
    assert found["numbers"]["kl"]["value"] == 0
    assert len(found["samples"]) == 4


@pytest.mark.slow
def test_tofu_goes_on_where_it_was_and_compares_with_a_model_that_never_saw_it(told, folder):
    asked = ("--data", "tofu", "--max-new-tokens", 6)
    told("tofu", "full", *asked, "--max-items", 2)
    items = folder / "full" / "evaluation" / "tofu_items.jsonl"
    # A header, then four sets of two items, scored and answered.
    assert len(items.read_text().splitlines()) == 1 + 4 * 2 * 2
    before = items.read_text()
    assert "needs a model that never saw" in told("tofu", "full", *asked)
    assert items.read_text().startswith(before)
    assert len(items.read_text().splitlines()) == 1 + 4 * 3 * 2

    said = told("tofu", "full", *asked, "--retain-model", "model")

    assert len(items.read_text().splitlines()) == 1 + 4 * 3 * 2
    summary = saved(folder / "full" / "evaluation" / "TOFU_SUMMARY.json")
    assert f"{summary['forget_quality']:.3g} (log10" in said
    of_retain = folder / "full" / "evaluation" / "retain"
    again = told("tofu", "full", *asked, "--retain-results", of_retain)
    assert saved(folder / "full" / "evaluation" / "TOFU_SUMMARY.json") == summary
    assert again.split("asking full")[1] == said.split("asking full")[1]


@pytest.mark.slow
def test_tofu_of_a_retrained_model_is_not_mixed_with_the_old_one(told, folder):
    asked = ("--data", "tofu", "--max-new-tokens", 6, "--max-items", 1, "--output", "mixed")
    told("tofu", "full", *asked)

    assert "made with another model" in told("tofu", "lora", *asked)
    assert "made with another template" in told("tofu", "full", *asked, "--template", "plain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pairs model --data list.jsonl", "Near it: lists.jsonl"),
        ("pairs model model --data pairs.jsonl", "model is named twice"),
        ("pairs /none --data pairs.jsonl", "no folder /none"),
        ("kl model --prompts pairs.jsonl", "Add --reference MODEL"),
        ("kl model --reference model --prompts none.jsonl", "no file or folder 'none.jsonl'"),
        ("kl model --reference model --prompts pairs.jsonl --max-new-tokens 5000", "reads 4,096"),
        ("tofu /none --data tofu", "no folder /none"),
        ("tofu model --data none", "--data: no folder none"),
        ("tofu model --data tofu --forget forget01", "a set that is there: forget10"),
        ("tofu model --data tofu --retain-model m --retain-results r", "Give one of them"),
        ("tofu model --data tofu --retain-results r", "no file r"),
        ("tofu model --data tofu --template caht", "none of auto, chat and plain"),
    ],
)
def test_what_cannot_be_measured_is_one_line(told, arguments, message):
    said = told(*arguments.split())

    assert message in said
    assert "\n" not in said


def test_a_policy_that_diverged_is_named(told, inputs):
    model = LlamaForCausalLM.from_pretrained(inputs / "model")
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(inputs / "diverged")
    load_tokenizer(ModelSection(path=str(inputs / "model"))).save_pretrained(inputs / "diverged")

    for command in ("pairs diverged --data pairs.jsonl", "tofu diverged --data tofu"):
        assert "diverged: weights hold values that are no numbers" in told(*command.split())


def test_prompts_of_dialogues_are_answered_at_their_first_turn(told, inputs):
    write_jsonl(inputs / "turns.jsonl", [{"turns": ["Hi?", "And then?"]}, {"prompt": "Ho?"}])
    command = "kl model --reference model --prompts turns.jsonl --max-new-tokens 3 --output own"

    said = told(*command.split())

    assert "Of prompts of several turns, the first one is answered." in said
    assert saved(inputs / "own" / "kl.json")["chat_template"] is True
    told(*command.split(), "--plain")
    assert saved(inputs / "own" / "kl.json")["chat_template"] is False


def test_a_number_is_shown_with_its_interval():
    number = {"value": 0.7123, "low": 0.65, "high": 0.78, "n": 20, "unit": "pairs"}

    assert cell(number) == "0.712 [0.650, 0.780]"
    assert cell({**number, "low": None, "high": None}) == "0.712"
    assert cell(None) == ""
