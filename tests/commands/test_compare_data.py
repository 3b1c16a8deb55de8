import json

import pytest

from prefopt.commands.compare_data import TrainingData
from prefopt.comparison.plan import runs_of
from prefopt.comparison.section import load_comparison
from prefopt.data.prepare import prepare_data
from prefopt.errors import UserError
from prefopt.evaluation.types import Message, Prompt
from prefopt.models.tokenizer import load_tokenizer
from tests.commands.test_compare import write_task


@pytest.fixture
def runs(tmp_path):
    settings = runs_of(load_comparison(write_task(tmp_path)))
    return [run for each in settings.values() for run in each]


def test_test_prompts_that_are_trained_on_are_counted_whatever_their_case(tmp_path, runs):
    lines = (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    own = TrainingData()
    # Some are held out, and no policy is trained on these.
    every = [Prompt(turns=(json.loads(line)["prompt"],)) for line in lines]
    trained = [each for each in every if own.num_seen(runs, [each])]
    assert len(trained) == 60 - 12

    text = trained[1].turns[0]
    prompts = [
        trained[0],
        Prompt(turns=(f" {text.upper()} ", "A second turn is not looked at.")),
        # What comes before is part of a prompt.
        Prompt(turns=trained[2].turns, context=(Message(role="system", content="Sort."),)),
        Prompt(turns=("zzz:",)),
    ]
    assert own.num_seen(runs, prompts) == 2


def test_a_run_on_other_data_is_refused(tmp_path, runs):
    folder = runs[0].folder
    folder.mkdir(parents=True)
    recipe = runs[0].recipe
    fingerprints = prepare_data(recipe.data, load_tokenizer(recipe.model)).fingerprints
    (folder / "data.json").write_text(json.dumps(fingerprints), encoding="utf-8")
    TrainingData().check_unchanged(runs)

    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        row = {"prompt": "uaebcd:", "responses": ["aeubcd", "abcdeu"], "scores": [1.0, 0.5]}
        file.write(json.dumps({"id": "new", **row}) + "\n")

    with pytest.raises(UserError, match=r"dpo-0-seed0 holds a run on other data: .*new output_dir"):
        TrainingData().check_unchanged(runs)
