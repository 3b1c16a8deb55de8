"""What is measured of a policy whose objective has a reference of its own."""

from pathlib import Path

import pytest
import yaml

from prefopt.commands.compare_measure import PolicyMeter
from prefopt.comparison.plan import Run, Setting
from prefopt.config import recipe_of
from prefopt.demo.model import save_start
from prefopt.demo.task import generate, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    for seed, name in enumerate(("start", "policy", "reference")):
        save_start(folder / name, seed=seed)
    write_data(generate(20, seed=0), folder)
    return folder


def run_of(folder: Path, reference: dict[str, str]) -> Run:
    values = {
        "model": {"path": str(folder / "start")},
        "data": {
            "sources": [{"path": str(folder / "train.jsonl")}],
            "evaluation": {"num_groups": 8},
            "max_length": 32,
            "cache_dir": str(folder / "cache"),
        },
        "objective": {"name": "dpo"},
        "reference": reference,
        "training": {"output_dir": str(folder / "policy"), "report_to": "none"},
    }
    recipe = recipe_of(values)
    (folder / "policy" / "recipe.yaml").write_text(yaml.safe_dump(recipe.resolved()), "utf-8")
    setting = Setting(method="dpo", number=0, values={})
    return Run(setting=setting, seed=0, recipe=recipe, is_alone=True)


@pytest.mark.slow
def test_drift_is_from_the_start_and_rewards_are_against_the_recipes_reference(folder):
    run = run_of(folder, {"cache": "off"})
    against_start = PolicyMeter(run.recipe, [], None).measure(run, 0)["pairs"]
    run = run_of(folder, {"path": str(folder / "reference")})
    own = PolicyMeter(run.recipe, [], None).measure(run, 0)["pairs"]
    run = run_of(folder, {"path": str(folder / "start")})
    same = PolicyMeter(run.recipe, [], None).measure(run, 0)["pairs"]

    nll = "calibration/nll"
    for name in ("drift/chosen", "drift/rejected", "ranking_accuracy"):
        assert own[name]["value"] == pytest.approx(against_start[name]["value"], abs=1e-4)
    assert own["calibration/nll"]["value"] != pytest.approx(
        against_start["calibration/nll"]["value"]
    )
    # The start by its path is the start.
    assert same[nll]["value"] == pytest.approx(against_start[nll]["value"], abs=1e-4)
