import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt.commands import report_judged
from prefopt.errors import UserError
from prefopt.evaluation.files import write_json_lines
from prefopt.evaluation.generate.answers import header_of, line_of
from prefopt.evaluation.judge.build import build_judge
from prefopt.evaluation.judge.questions import by_place, pair_questions
from prefopt.evaluation.judge.runner import run_judge
from prefopt.evaluation.judge.section import read_section
from prefopt.evaluation.types import Answer, Prompt

PROMPTS = [Prompt(turns=(text,)) for text in ("kteaoz:", "bcdaei:", "fghiou:")]
RULE = {"backend": "rule", "function": "prefopt.demo.task:gold_score", "levels": [0, 1]}


def write_answers(system: str, texts: Sequence[str]) -> list[Answer]:
    found = [
        Answer(prompt_id=prompt.prompt_id, turns=(text,))
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]
    lines = [header_of(system, "m", {}), *map(line_of, found)]
    write_json_lines(Path(f"{system}.jsonl"), lines)
    return found


def judge(answers: dict[str, list[Answer]]) -> None:
    prompts = {each.prompt_id: each for each in PROMPTS}
    placed = {system: by_place(system, each, prompts) for system, each in answers.items()}
    asked = pair_questions([("a", "b")], placed, prompts)
    run_judge(build_judge(read_section(RULE)), asked, (), Path("judgments.jsonl"))


def report(*, baseline: str = "b", times: int = 1) -> dict[str, Any]:
    report_judged.run(
        "prompts.jsonl",
        answers=[Path("a.jsonl"), Path("b.jsonl")],
        judgments=times * [Path("judgments.jsonl")],
        baseline=baseline,
        output=Path("report"),
    )
    found: dict[str, Any] = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json_lines(Path("prompts.jsonl"), ({"prompt": each.turns[0]} for each in PROMPTS))


def test_judgments_of_answers_that_were_replaced_are_left_out(capsys):
    worst, best = write_answers("b", ["zzzzzz"] * 3), ("aeoktz", "aeibcd", "ioufgh")
    judge({"a": write_answers("a", best), "b": worst})
    whole = report()
    assert whole["judges"][0]["against_baseline"][0]["win"]["value"] == 1.0
    assert whole["notes"] == []

    # The first answer is another one now, and nobody has judged it.
    write_answers("a", ["zzzzzy", *best[1:]])
    changed = report()

    assert changed["judges"][0]["coverage"]["num_asked"] == 4
    assert changed["notes"] == ["2 judgments by gold_score are of other answers; left out."]


def test_judgments_of_none_of_the_answers_are_refused():
    worst = write_answers("b", ["zzzzzz"] * 3)
    judge({"a": write_answers("a", ["aeoktz", "aeibcd", "ioufgh"]), "b": worst})
    write_answers("a", ["zzzzzy"] * 3)

    with pytest.raises(UserError, match="all judgments are of other answers than those given"):
        report()


def test_a_baseline_without_answers_and_a_judge_named_twice_are_refused():
    worst = write_answers("b", ["zzzzzz"] * 3)
    judge({"a": write_answers("a", ["aeoktz", "aeibcd", "ioufgh"]), "b": worst})

    with pytest.raises(UserError, match=r"--baseline: no answers of 'bb'\. Did you mean 'b'\?"):
        report(baseline="bb")
    with pytest.raises(UserError, match="two files are of the judge gold_score"):
        report(times=2)
    assert not Path("report").exists()
