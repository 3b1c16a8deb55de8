"""Two trained policies through answers, judges and reports, on the real prompts of both suites."""

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

from prefopt.commands import exports, generate, judge, report
from tests.support.runs import run as train
from tests.support.shared import SHARED, needs_data
from tests.support.tiny import save_tiny_model, write_pairs

pytestmark = [pytest.mark.slow, needs_data]

SUITES = {
    "mt_bench": SHARED / "mt_bench" / "question.jsonl",
    "alpaca_eval": SHARED / "alpaca_eval" / "reference_gpt4_1106_preview.json",
}
NUM_PROMPTS = {"mt_bench": 80, "alpaca_eval": 805}
SYSTEMS = ("dpo", "simpo")
# The share of vowels: any function of texts will do.
RULE = """
def score(prompt, answer):
    return sum(letter in "aeiou" for letter in answer) / max(len(answer), 1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs from one start, two judges."""
    folder = tmp_path_factory.mktemp("end-to-end")
    save_tiny_model(folder / "model", max_position_embeddings=16384)
    write_pairs(folder / "pairs.jsonl", 24)
    for name in SYSTEMS:
        train(folder, name, objective={"name": name}, training={"max_steps": 2})
    (folder / "rule.py").write_text(RULE, encoding="utf-8")
    judges: dict[str, dict[str, Any]] = {
        "rule": {
            "backend": "rule",
            "function": f"{folder / 'rule.py'}:score",
            "temperature": 0.1,
            "levels": [0.0, 1.0],
        },
        "decision": {"backend": "hf_decision", "model": str(folder / "model"), "levels": [1, 2, 3]},
    }
    for name, section in judges.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(section), encoding="utf-8")
    return folder


def killed_once_there_are(num_lines: int, file: Path, command: list[str]) -> None:
    """Start a command of prefopt, and kill it when a file has so many lines and not all yet."""
    process = subprocess.Popen([sys.executable, "-m", "prefopt", *command])
    deadline = time.monotonic() + 240
    while not file.exists() or len(file.read_bytes().splitlines()) < num_lines:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=SUITES)
def answered(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    """A suite, and the folder with both systems' answers; the first was killed and gone on with."""
    suite = request.param
    out = folder / suite
    settings = ["max_new_tokens=12", "batch_size=16", "temperature=1.0"]
    file = out / "answers" / "dpo.jsonl"
    words = [str(folder / "dpo"), "--prompts", str(SUITES[suite]), "--output", str(file)]
    killed_once_there_are(20, file, ["generate", *words, *settings])
    assert 20 <= len(file.read_bytes().splitlines()) < NUM_PROMPTS[suite]
    for name in SYSTEMS:
        generate.run(
            str(folder / name),
            settings,
            prompts=str(SUITES[suite]),
            output=out / "answers" / f"{name}.jsonl",
            name=None,
            endpoint=None,
        )
    return suite, out


def ask(folder: Path, answered: tuple[str, Path], name: str, **options: Any) -> Path:
    suite, out = answered
    path = out / "judgments" / f"{name}.jsonl"
    judge.run(
        folder / f"{name}.yaml",
        prompts=str(SUITES[suite]),
        answers=[out / "answers" / f"{system}.jsonl" for system in SYSTEMS],
        baseline="dpo",
        pairs=None,
        turns=None,
        output=path,
        allow_missing=False,
        **options,
    )
    return path


@pytest.fixture(scope="module")
def judged(folder: Path, answered: tuple[str, Path]) -> list[Path]:
    """What both judges said; the decisions were killed and gone on with."""
    suite, out = answered
    file = out / "judgments" / "decision.jsonl"
    words = ["judge", "run", str(folder / "decision.yaml"), "--prompts", str(SUITES[suite])]
    for system in SYSTEMS:
        words += ["--answers", str(out / "answers" / f"{system}.jsonl")]
    words += ["--baseline", "dpo", "--kind", "pair", "--output", str(file)]
    killed_once_there_are(10, file, words)
    return [
        ask(folder, answered, "rule", kind="both"),
        ask(folder, answered, "decision", kind="pair"),
    ]


def test_every_prompt_has_one_answer_to_every_turn(answered):
    suite, out = answered

    for system in SYSTEMS:
        header, *answers = lines_of(out / "answers" / f"{system}.jsonl")
        assert header["system"] == system
        assert len({each["prompt_id"] for each in answers}) == len(answers) == NUM_PROMPTS[suite]
        num_turns = {len(each["turns"]) for each in answers}
        assert num_turns == ({2} if suite == "mt_bench" else {1})


def test_every_pair_was_judged_once_in_each_order(answered, judged):
    suite, _ = answered
    num_turns = 2 if suite == "mt_bench" else 1

    for file in judged:
        pairs = [each for each in lines_of(file)[1:] if each["kind"] == "pair"]
        places = {(each["prompt_id"], each["turn"], each["system"]) for each in pairs}
        assert len(places) == len(pairs) == 2 * num_turns * NUM_PROMPTS[suite]
        assert {each["status"] for each in pairs} == {"ok"}


def test_the_report_has_both_judges_and_their_numbers(answered, judged):
    suite, out = answered
    title = {"mt_bench": "MT-Bench", "alpaca_eval": "AlpacaEval"}[suite]

    report.run(
        None,
        prompts=str(SUITES[suite]),
        answers=[out / "answers" / f"{system}.jsonl" for system in SYSTEMS],
        judgments=judged,
        baseline="dpo",
        output=out / "report",
    )

    found = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    assert found["title"] == f"{title} protocol with judge score"
    assert found["num_prompts"] == NUM_PROMPTS[suite]
    # The mean over prompts, turns and both orders, of the lines themselves.
    for judge_numbers, file in zip(found["judges"], judged, strict=True):
        wins = [
            each["probs"][0] + each["probs"][2] / 2
            if each["system"] == "simpo"
            else each["probs"][1] + each["probs"][2] / 2
            for each in lines_of(file)[1:]
            if each["kind"] == "pair"
        ]
        row = next(r for r in judge_numbers["against_baseline"] if r["method"] == "simpo")
        assert row["win"]["value"] == pytest.approx(sum(wins) / len(wins), abs=1e-9)
    assert "MT-Bench" in (out / "report" / "report.md").read_text(encoding="utf-8") or (
        suite == "alpaca_eval"
    )


def export(format: str, file: Path, suite: str, **options: Any) -> None:
    given: dict[str, Any] = {"answers": [], "judgments": None, "baseline": None, **options}
    exports.export(format, file, prompts=str(SUITES[suite]), **given)


def comes_back(format: str, file: Path, suite: str, **options: Any) -> None:
    """Export, import and export again: the same bytes."""
    export(format, file, suite, **options)
    again = file.with_name(f"again-{file.name}")
    imported = file.with_name(f"imported-{file.name}l")
    prompts = str(SUITES[suite]) if suite == "mt_bench" else None
    exports.load(format, file, imported, prompts=prompts)
    changed = {key: imported for key in ("answers", "judgments") if options.get(key)}
    if "judgments" in changed:
        # Judgments came back; texts of answers stay what they were.
        options = {**options, "judgments": imported}
    else:
        options = {**options, "answers": [imported]}
    export(format, again, suite, **options)
    assert again.read_bytes() == file.read_bytes()


def test_exports_come_back_as_they_were(answered, judged):
    suite, out = answered
    answers = [out / "answers" / f"{system}.jsonl" for system in SYSTEMS]

    if suite == "alpaca_eval":
        comes_back("alpaca-outputs", out / "outputs.json", suite, answers=answers[1:])
        comes_back(
            "alpaca-annotations",
            out / "annotations.json",
            suite,
            answers=answers,
            judgments=judged[1],
            baseline="dpo",
        )
    else:
        comes_back("mt-bench-answers", out / "answers.jsonl", suite, answers=answers[1:])
        comes_back("mt-bench-pair", out / "pair.jsonl", suite, judgments=judged[1])
        comes_back("mt-bench-single", out / "single.jsonl", suite, judgments=judged[0])
