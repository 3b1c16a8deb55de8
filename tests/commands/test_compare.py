"""`prefopt compare` on the embedded task, from one file to one report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.commands import compare, compare_steps
from prefopt.commands.compare_steps import Comparison
from prefopt.comparison.plan import runs_of, with_seed
from prefopt.comparison.section import load_comparison
from prefopt.demo.model import save_start
from prefopt.demo.task import generate, held_out_prompts, write_data, write_jsonl
from prefopt.errors import UserError

GOLD = {
    "backend": "rule",
    "function": "prefopt.demo.task:gold_score",
    "temperature": 0.2,
    "levels": [0.0, 1.0],
}


def write_task(folder: Path) -> Path:
    """Data, a start, a base recipe and a comparison of two methods with two seeds."""
    save_start(folder / "start", seed=0)
    write_data(generate(60, seed=0), folder)
    prompts = list(dict.fromkeys(held_out_prompts(60, seed=1)))
    write_jsonl(({"prompt": each} for each in prompts[:8]), folder / "validation.jsonl")
    write_jsonl(({"prompt": each} for each in prompts[8:28]), folder / "test.jsonl")
    base = {
        "model": {"path": str(folder / "start")},
        "data": {
            "sources": [{"path": str(folder / "train.jsonl")}],
            "evaluation": {"num_groups": 12},
            "max_length": 32,
            "cache_dir": str(folder / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": str(folder / "unused"),
            "groups_per_step": 8,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "save_strategy": "no",
        },
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    values = {
        "output_dir": str(folder / "out"),
        "base": str(folder / "base.yaml"),
        "methods": {
            "dpo": {"grid": {"objective.beta": [0.1, 0.5]}},
            "simpo": {"sections": {"objective": {"name": "simpo"}}},
        },
        "seeds": [0, 1],
        "prompts": {
            "test": str(folder / "test.jsonl"),
            "validation": str(folder / "validation.jsonl"),
        },
        "generation": {"max_new_tokens": 8, "temperature": 1.0},
        "judges": {"gold": GOLD, "slotted": {**GOLD, "slot_bias": 2.0}},
        "judges_score": True,
        "kl": {"num_samples": 2, "max_new_tokens": 8},
        "entanglement": {"groups": 4},
        "num_jobs": 2,
    }
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


def run(file: Path | None = None, **options: Any) -> None:
    given: dict[str, Any] = {"is_demo": False, "output": None, "prompts": None, "judge": None}
    given |= {"seeds": None, "is_dry": False, **options}
    compare.run([] if file is None else [file], **given)


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(tmp_path, capsys):
    run(write_task(tmp_path), is_dry=True)

    said = capsys.readouterr().out
    assert "dpo-1-seed0: {'objective.beta': 0.5}" in said
    assert "3 settings with seed 0, then the best of each method with 1 more seeds: 5 runs" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a comparison file, recipes, or --demo"),
        ({"is_demo": True, "seeds": "0"}, "--demo brings its own"),
    ],
)
def test_what_does_not_go_together_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        run(**options)


def test_recipes_need_prompts_a_judge_and_a_folder(tmp_path):
    write_task(tmp_path)

    with pytest.raises(UserError, match="recipes need --prompts, --judge, --output too"):
        run(tmp_path / "base.yaml")
    with pytest.raises(UserError, match="recipes need --prompts, --output too"):
        run(tmp_path / "base.yaml", judge=tmp_path / "judge.yaml")


def test_two_recipes_of_one_name_are_refused(tmp_path):
    write_task(tmp_path)
    base = tmp_path / "base.yaml"
    options: dict[str, Any] = {"is_demo": False, "is_dry": True, "seeds": None}

    with pytest.raises(UserError, match="two recipes are called base"):
        compare.run([base, base], output=tmp_path / "o", prompts=base, judge=base, **options)


def test_seeds_are_numbers(tmp_path):
    file = write_task(tmp_path)
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(GOLD), encoding="utf-8")
    given = {"output": tmp_path / "o", "prompts": file, "judge": tmp_path / "judge.yaml"}

    with pytest.raises(UserError, match="--seeds: '1;2' is no list of numbers"):
        run(tmp_path / "base.yaml", seeds="1;2", **given)


def test_prompts_in_both_files_are_refused_before_anything_runs(tmp_path):
    file = write_task(tmp_path)
    both = (tmp_path / "test.jsonl").read_text(encoding="utf-8")
    (tmp_path / "validation.jsonl").write_text(both, encoding="utf-8")
    section = load_comparison(file)

    with pytest.raises(UserError, match=r"prompts\.validation shares 20 prompts"):
        Comparison(section, runs_of(section), "prefopt compare")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_finds_prompts_and_judges_that_cannot_be_used(tmp_path):
    file = write_task(tmp_path)
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values["judges"]["gold"] = {**GOLD, "function": "prefopt.demo.task:gold"}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")

    with pytest.raises(UserError, match=r"^judges\.gold: judge\.function: .* no function 'gold'"):
        run(file, is_dry=True)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test\.jsonl"):
        run(file, is_dry=True)


def test_a_demo_has_no_dry_run(tmp_path):
    with pytest.raises(UserError, match="--dry-run does not go with --demo"):
        run(is_demo=True, is_dry=True, output=tmp_path / "o")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_comparison(tmp_path):
    with pytest.raises(UserError, match=r"is a folder\. Give the path of a YAML file"):
        run(tmp_path)


def test_seeds_that_came_to_one_policy_are_said(tmp_path, monkeypatch):
    section = load_comparison(write_task(tmp_path))
    runs = [settings[0] for settings in runs_of(section).values()]
    runs += [with_seed(run, section, 1) for run in runs]
    monkeypatch.setattr(compare_steps, "policy_of", lambda run: (run, None))
    # Of dpo both seeds are alike, of simpo none.
    monkeypatch.setattr(
        compare_steps,
        "digest_of",
        lambda run, _: run.setting.method if run.setting.method == "dpo" else run.name,
    )

    [note] = compare_steps._notes_on_seeds(runs)

    assert note.startswith("Seeds of dpo came to the same policy")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole comparison, killed once while it trains and once while it answers and judges."""
    folder = tmp_path_factory.mktemp("compared")
    file = write_task(folder)
    command = [sys.executable, "-m", "prefopt", "compare", str(file)]
    for wanted in ("runs/dpo-0-seed0/config.json", "judgments/test/gold.jsonl"):
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 240
        while not (folder / "out" / wanted).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_every_method_is_trained_with_every_seed_and_only_the_picked_setting_again(compared):
    report = report_of(compared)

    picked = next(each for each in report["sweep"] if each["is_selected"])
    number = [0.1, 0.5].index(picked["settings"]["objective.beta"])
    names = {"dpo-0-seed0", "dpo-1-seed0", f"dpo-{number}-seed1", "simpo-seed0", "simpo-seed1"}
    assert {path.name for path in (compared / "out/runs").iterdir()} == names
    assert len(report["frontier"]) == 5
    assert [each["name"] for each in report["methods"]] == [
        "start",
        "dpo",
        "simpo",
        "constant",
        "longest",
    ]


@pytest.mark.slow
def test_the_picked_setting_has_the_most_wins_on_validation(compared):
    sweep = report_of(compared)["sweep"]

    wins = [each["validation"]["value"] for each in sweep]
    # Of equal ones the first is picked.
    best = wins.index(max(wins))
    assert [each["is_selected"] for each in sweep] == [number == best for number in range(2)]
    assert {each["validation"]["n"] for each in sweep} == {8}


@pytest.mark.slow
def test_no_question_was_put_twice_and_every_pair_in_both_orders(compared):
    lines = (compared / "out/judgments/test/gold.jsonl").read_text(encoding="utf-8").splitlines()
    judgments = [json.loads(line) for line in lines[1:]]

    places = [
        (each["prompt_id"], each["system"], each["opponent"], each["kind"]) for each in judgments
    ]
    assert len(set(places)) == len(places)
    pairs = {place for place in places if place[3] == "pair"}
    assert {(prompt, b, a, kind) for prompt, a, b, kind in pairs} == pairs


@pytest.mark.slow
def test_a_mean_score_of_the_report_is_the_gold_score_of_the_answers(compared):
    from prefopt.demo.task import gold_score

    prompts = {
        line["prompt_id"]: line
        for line in map(
            json.loads,
            (compared / "out/answers/test/simpo-seed0.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()[1:],
        )
    }
    texts = [
        json.loads(line)["prompt"]
        for line in (compared / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    from prefopt.evaluation.types import Prompt

    def mean(system: str) -> float:
        path = compared / f"out/answers/test/{system}.jsonl"
        lines = [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()[1:]]
        said = {each["prompt_id"]: each["turns"][0] for each in lines}
        scores = [gold_score(text, said[Prompt(turns=(text,)).prompt_id]) for text in texts]
        return sum(scores) / len(scores)

    assert len(prompts) == 20
    scores = {each["method"]: each["mean"] for each in report_of(compared)["judges"][0]["scores"]}
    simpo = (mean("simpo-seed0") + mean("simpo-seed1")) / 2
    assert scores["simpo"]["value"] == pytest.approx(simpo, abs=1e-9)
    assert scores["start"]["value"] == pytest.approx(mean("start"), abs=1e-9)


@pytest.mark.slow
def test_a_slot_bias_moves_the_first_slot_and_no_win_of_a_tie(compared):
    gold, slotted = report_of(compared)["judges"]

    assert gold["order"]["first_slot_rate"]["value"] == pytest.approx(0.5, abs=1e-9)
    assert slotted["order"]["first_slot_rate"]["value"] > 0.7


@pytest.mark.slow
def test_the_reference_was_computed_once_and_the_report_says_so(compared):
    saved = report_of(compared)["saved"]

    # Three runs of dpo read log-probs of all 60 records; simpo needs none. Alone, each of them
    # trains on 3 steps of 8 groups.
    assert (saved["num_runs"], saved["num_reference_groups"]) == (5, 60)
    assert saved["num_reference_groups_alone"] == 3 * 3 * 8


@pytest.mark.slow
def test_all_runs_of_a_seed_read_the_data_in_one_order_and_seeds_differ(compared):
    recipes = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (compared / "out/runs").glob("*/recipe.yaml")
    ]

    assert {(each["training"]["seed"], each["training"]["data_seed"]) for each in recipes} == {
        (0, 0),
        (1, 1),
    }
    kls = {
        (each["method"], each["seed"]): each["kl"]["value"]
        for each in report_of(compared)["frontier"]
    }
    assert kls["simpo", 0] != kls["simpo", 1]
    assert {recipe["training"]["seed"] for recipe in recipes} == {0, 1}


@pytest.mark.slow
def test_what_was_measured_is_what_the_single_commands_measure(compared):
    out = compared / "out"
    command = [sys.executable, "-m", "prefopt", "evaluate", "pairs", str(out / "runs/simpo-seed0")]
    command += ["--data", str(compared / "train.jsonl"), "--output", str(compared / "single")]
    subprocess.run(command, check=True, capture_output=True)

    single = json.loads((compared / "single/pairs.json").read_text(encoding="utf-8"))
    measured = json.loads((out / "measured/simpo-seed0.json").read_text(encoding="utf-8"))
    # One is over the held-out groups and one over all: both know the same numbers.
    assert measured["pairs"].keys() <= single["models"][0]["numbers"].keys()
    assert measured["kl"]["kl"]["value"] > 0
    assert {"cosine", "share_chosen_condition_broken"} <= report_of(compared)["entanglement"][
        "simpo"
    ].keys()


@pytest.mark.slow
def test_the_same_command_again_trains_and_asks_nothing(compared):
    out = compared / "out"
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.suffix in (".jsonl", ".safetensors")
    }

    subprocess.run(
        [sys.executable, "-m", "prefopt", "compare", str(compared / "comparison.yaml")], check=True
    )

    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_last_words(tmp_path):
    file = write_task(tmp_path)
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values["methods"] = {"kto": {"sections": {"objective": {"name": "kto"}}}}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "prefopt", "compare", str(file)]

    # Libraries talk before the error: this makes one of them do so.
    env = {**os.environ, "WANDB_MODE": "offline"}
    failed = subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    assert failed.returncode == 2
    last = failed.stderr.strip().splitlines()[-1]
    # Scores of the task are graded, and kto reads labels.
    assert last.startswith("error: precompute of reference-1 failed with exit code 2: error: ")
    assert "logs/reference-1.txt" in last
