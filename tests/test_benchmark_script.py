"""scripts/benchmark.py: what it divides by what, and what it refuses to time."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
arms = import_module("benchmark_arms")
gate = import_module("benchmark_gate")
gram = import_module("benchmark_gram")
models = import_module("benchmark_models")
numbers = import_module("benchmark_numbers")
report = import_module("benchmark_report")
workloads = import_module("benchmark_workloads")

Group = workloads.Group
SMALL = Group(prompt=2, responses=(1, 3))


def test_tokens_of_a_group_count_its_prompt_once_or_for_every_response():
    assert SMALL.num_unique_tokens == 2 + 1 + 3
    assert SMALL.num_packed_tokens == (2 + 1) + (2 + 3)


def test_operations_are_those_of_all_groups():
    work = models.work_of("tiny")

    one = work.training(models.tokens_of([SMALL]))
    assert work.training(models.tokens_of([SMALL, SMALL])) == 2 * one > 0


def test_weights_of_the_small_model_are_counted_without_its_embedding():
    work = models.work_of("7M", lora_rank=2)

    query_and_output, key_and_value, mlp = 2 * 256 * 256, 2 * 256 * 128, 3 * 256 * 768
    assert work.num_body_weights == 6 * (query_and_output + key_and_value + mlp)
    assert work.num_head_weights == 256 * 8192
    assert work.attention_width == 6 * 4 * 64
    per_layer = 2 * (256 + 256) + 2 * (128 + 256) + 3 * (768 + 256)
    assert work.num_adapter_weights == 6 * 2 * per_layer


def test_a_ratio_is_that_of_medians():
    found = numbers.ratio(slow=[4.0, 9.0, 6.0], fast=[1.0, 3.0, 2.0])

    assert found["ratio"] == 6.0 / 2.0
    # Both arms have the same repeat in the middle of any resample: 4 / 1, 6 / 2 or 9 / 3.
    assert (found["low"], found["high"]) == (3.0, 4.0)


def test_what_slows_both_arms_of_a_repeat_leaves_no_doubt():
    fast = [1.0, 1.5, 7.0, 0.9, 1.1]

    found = numbers.ratio(slow=[3 * each for each in fast], fast=fast)

    assert list(found.values()) == pytest.approx([3.0, 3.0, 3.0])


def test_every_arm_is_compared_with_those_before_it():
    totals = {"T0": [8.0] * 3, "T1": [4.0] * 3, "U0": [2.0] * 3}

    found = numbers.all_ratios(totals)

    assert {name: each["ratio"] for name, each in found.items()} == {
        "T1/T0": 2.0,
        "U0/T0": 4.0,
        "U0/T1": 2.0,
    }


def test_rates_are_of_the_median_epoch():
    found = numbers.rates([3.0, 2.0, 40.0], [SMALL] * 4, operations=600.0, peak=1000.0)

    assert found == {
        "seconds_of_epoch": 3.0,
        "groups_per_second": 4 / 3,
        "useful_tokens_per_second": 4 * 6 / 3,
        "share_of_roof": 0.2,
    }


def test_a_cache_has_paid_when_its_pass_is_saved():
    found = numbers.cache_numbers(reference_seconds=2.0, live=9.0, cached=5.0)

    assert found == {
        "share_of_epoch": 2 / 5,
        "live_share_of_epoch": 4 / 5,
        "break_even_epochs": 2 / 4,
    }
    assert numbers.cache_numbers(2.0, live=5.0, cached=6.0)["break_even_epochs"] is None


def test_a_repeat_counts_if_the_machine_was_as_fast_after_it_as_before():
    assert numbers.quiet_repeats([100.0, 97.0, 90.0, 94.0]) == [0, 2]


def test_lengths_are_those_of_the_rule_and_have_the_means_of_the_data_sets():
    content = json.loads(workloads.LENGTHS.read_text(encoding="utf-8"))

    assert content == workloads.draw_lengths()
    assert max(p + max(rest) for each in content.values() for p, *rest in each["lengths"]) <= 1024
    means = {"ultrafeedback": (185, 305), "hh": (186, 95), "tldr": (326, 37)}
    for name, (prompt, response) in means.items():
        # As few as one run has.
        (workload,) = workloads.load_workloads([name])
        groups = workload.first(2).groups
        assert len(groups) == 16
        assert sum(g.prompt for g in groups) / 16 == pytest.approx(prompt, rel=0.01)
        assert sum(sum(g.responses) for g in groups) / 32 == pytest.approx(response, rel=0.02)


def test_a_list_becomes_all_its_pairs_better_response_first(tmp_path):
    (workload,) = workloads.load_workloads(["lists_k7"])
    rows = workloads.write_rows(workload.one_step(1).shortened(50), 100, tmp_path / "rows.jsonl")

    (row,) = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    pairs = workloads.as_pairs(rows)
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert len(pairs) == workload.pairs_per_group == 21
    place_of = {text: place for place, text in enumerate(row["responses"])}
    places = [(place_of[pair["chosen"]], place_of[pair["rejected"]]) for pair in pairs]
    assert sorted(places) == [(i, j) for i in range(7) for j in range(i + 1, 7)]
    lengths = [len(text.split()) + 1 for text in row["responses"]]
    assert lengths == [max(2, n // 50) for n in workload.groups[0].responses]


def evidence(**changes):
    values = {
        "logps": {"a": -10.0, "b": -20.0},
        "gradient": {"w": torch.tensor([3.0, 4.0])},
        "losses": [0.69, 0.5],
        "grad_norms": [5.0, 4.0],
        "tokens_per_step": 12,
    }
    return arms.Evidence(**{**values, **changes})


def objections(**changes):
    return gate.objections(evidence(), evidence(**changes), gate.FLOAT32)


def test_the_gate_lets_pass_what_agrees_but_for_rounding():
    assert objections() == []
    assert objections(logps={"a": -10.00005, "b": -20.0}, losses=[0.69, 0.5001]) == []


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({"logps": {"a": -10.0, "b": -20.0002}}, "log-probs differ by 2.0e-04 nats"),
        ({"logps": {"a": -10.0, "b": float("nan")}}, "log-probs differ"),
        ({"logps": {"a": -10.0, "c": -20.0}}, "not the same responses"),
        ({"gradient": {"w": torch.tensor([3.0, 4.2])}}, "cosine"),
        ({"gradient": {"w": torch.zeros(2)}}, "cosine"),
        ({"gradient": {"v": torch.tensor([3.0, 4.0])}}, "not the same trained parameters"),
        ({"grad_norms": [5.1, 4.0]}, "gradient norms differ by 2.0e-02"),
        ({"losses": [0.69, 0.45]}, "losses differ by 1.0e-01"),
        ({"losses": [0.69]}, "not the same number of steps"),
    ],
)
def test_the_gate_refuses(changes, objection):
    (found,) = [each for each in objections(**changes) if objection in each]

    assert objection in found


def test_the_gate_refuses_curves_that_show_nothing():
    still = evidence(losses=[0.69, 0.69])

    assert "hardly moves" in gate.objections(still, still, gate.FLOAT32)[0]


@pytest.mark.parametrize(("name", "num_tokens"), [("U1", 2 * 8), ("U2", 2 * 6), ("U4", 6)])
def test_an_arm_must_run_as_many_tokens_as_it_stands_for(name, num_tokens):
    arm = arms.ARMS[name]

    assert gate.wrong_path(arm, [SMALL], num_tokens) == []
    for other in {6, 8, 10, 12, 16} - {num_tokens}:
        assert f"a step ran {other} tokens" in gate.wrong_path(arm, [SMALL], other)[0]


def test_a_section_takes_the_place_of_the_one_with_its_heading(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## One\n\n1\n\n## Two\n\n2\n", encoding="utf-8")

    report.put_section(page, "## One\n\nnew\n")
    report.put_section(page, "## Three\n\n3\n")
    report.put_section(page, "## Three\n\nnew\n")

    expected = "# Page\n\n## One\n\nnew\n\n## Two\n\n2\n\n## Three\n\nnew\n"
    assert page.read_text(encoding="utf-8") == expected


def job(folder: Path, name: str, **changes):
    """An arm on a tiny model and two short groups, in this process."""
    model, rows = folder / "model", folder / "rows.jsonl"
    if not rows.exists():
        models.save_model("tiny", model, torch.float32)
        (workload,) = workloads.load_workloads(["ultrafeedback_k4"])
        workloads.write_rows(workload.one_step(2).shortened(24), 8192, rows)
    own = folder / f"{name}-{len(list(folder.iterdir()))}"
    own.mkdir()
    values = {
        "arm": arms.ARMS[name],
        "model": model,
        "rows": rows,
        "rows_of_check": rows,
        "groups_per_step": 2,
        "groups_per_step_of_check": 2,
        "pairs_per_group": 6,
        "folder": own,
        "num_threads": 1,
    }
    return arms.Job(**{**values, **changes})


@pytest.mark.slow
# trl itself uses arguments that transformers deprecates.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_gate_refuses_another_beta_and_another_weight_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")  # or trl reports its use
    check = import_module("benchmark_runs").check
    first = check(job(tmp_path, "T0"))
    other_model = tmp_path / "other"
    other_model.mkdir()
    for file in (tmp_path / "model").iterdir():
        (other_model / file.name).write_bytes(file.read_bytes())
    weights = load_file(other_model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.5
    save_file(weights, other_model / "model.safetensors", metadata={"format": "pt"})

    def against(name: str, **changes) -> list[str]:
        return gate.objections(first, check(job(tmp_path, name, **changes)), gate.FLOAT32)

    for name in ("T1", "U0", "U2", "U4"):
        assert against(name) == []
    assert any("losses differ" in each for each in against("U2", beta=0.2))
    assert any("log-probs differ" in each for each in against("U2", model=other_model))


@pytest.mark.slow
def test_a_run_ends_in_ratios_and_a_page(tmp_path):
    numbers_file, page = tmp_path / "numbers.json", tmp_path / "page.md"
    given = "train --model-size tiny --shorten 16 --workloads tldr --arms T1 U2 U4"
    given += " --steps 1 --repeats 2 --threads 1"
    script, outputs = SCRIPTS / "benchmark.py", ["--output", numbers_file, "--page", page]

    done = subprocess.run(
        [sys.executable, script, *given.split(), *outputs],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    measured = json.loads(numbers_file.read_text(encoding="utf-8"))["workloads"]["tldr"]
    assert list(measured["arms"]) == ["T0", "T1", "U2", "U4"]
    for name, arm in measured["arms"].items():
        assert [len(seconds) for seconds in arm["seconds_of_steps"]] == [1, 1]
        assert arm["agreement"]["logps"] <= 1e-4
        assert arm["memory"]["peak"] >= arm["memory_at_start"]["now"] > 0
        assert (arm["reference_seconds"] > 0) == (name in ("T1", "U4"))
    cached, live = (
        sorted(each[0] for each in measured["arms"][name]["seconds_of_steps"])
        for name in ("U4", "U2")
    )
    expected = sum(live) / sum(cached)
    assert measured["ratios"]["U4/U2"]["ratio"] == pytest.approx(expected)
    text = page.read_text(encoding="utf-8")
    assert f"python scripts/benchmark.py {given}`" in text
    assert str(tmp_path) not in text


def test_where_the_gate_is_shut_the_script_fails_and_says_why(monkeypatch):
    benchmark, train = import_module("benchmark"), import_module("benchmark_train")

    def refuse(*_, **__):
        raise train.GateError("hh: U2: losses differ by 1.0e-01.")

    monkeypatch.setattr(benchmark, "train", refuse)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "train"])

    with pytest.raises(SystemExit) as exit_:
        benchmark.main()

    assert exit_.value.code == "error: hh: U2: losses differ by 1.0e-01. Nothing was timed."


@pytest.mark.slow
def test_a_gram_that_is_wrong_is_not_timed(monkeypatch):
    found = gram.gram(1, num_groups=1, size="tiny")
    assert found["workloads"].keys() == {work.name for work in workloads.load_workloads()}
    assert 0 < found["share_of_training"] < 1

    plain = gram.GramMeter.measure

    def doubled(self, batch, weights=None):
        measured = plain(self, batch, weights)
        parts = {name: 2 * part for name, part in measured.of_parameter.items()}
        return replace(measured, of_parameter=parts)

    monkeypatch.setattr(gram.GramMeter, "measure", doubled)
    with pytest.raises(AssertionError, match="Gram is wrong"):
        gram.gram(1, num_groups=1, size="tiny")
