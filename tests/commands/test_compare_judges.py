"""Judges are tried before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from prefopt.commands import compare_judges
from prefopt.commands.compare_judges import Jury
from prefopt.comparison.section import ComparisonSection
from prefopt.errors import UserError, check_section
from prefopt.evaluation.judge.rule import RuleJudge
from prefopt.evaluation.types import Prompt, Reply

PROMPT = Prompt(turns=("kteaoz:", "and now?"))
GOLD = {"backend": "rule", "function": "prefopt.demo.task:gold_score", "levels": [0.0, 1.0]}


def jury(folder: Path, judge: dict[str, Any], **more: Any) -> Jury:
    values = {
        "output_dir": str(folder),
        "base": "base.yaml",
        "methods": {"dpo": {}},
        "prompts": {"test": "test.jsonl"},
        "judges": {"gold": judge},
    }
    return Jury(check_section(ComparisonSection, {**values, **more}, ""))


def fails(folder: Path) -> dict[str, Any]:
    file = folder / "rule.py"
    file.write_text("def score(prompt, answer):\n    return 1 / 0\n", encoding="utf-8")
    return {**GOLD, "function": f"{file}:score"}


def test_a_judge_that_is_fit_says_nothing(tmp_path):
    jury(tmp_path, GOLD, judges_score=True).check(PROMPT, asks=True)

    assert not list(tmp_path.iterdir())


def test_a_judge_without_scores_is_refused_where_they_are_wanted(tmp_path):
    judge = {**GOLD, "form": "pair"}

    with pytest.raises(UserError, match=r"^judges\.gold: it gives no scores\. Set judges_score"):
        jury(tmp_path, judge, judges_score=True).check(PROMPT, asks=False)
    jury(tmp_path, judge).check(PROMPT, asks=False)


def test_a_judge_that_fails_on_a_question_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^judges\.gold: judge\.function .* ZeroDivisionError"):
        jury(tmp_path, fails(tmp_path)).check(PROMPT, asks=True)


def test_a_judge_that_has_judged_here_is_asked_no_more(tmp_path):
    file = tmp_path / "judgments" / "test" / "gold.jsonl"
    file.parent.mkdir(parents=True)
    file.touch()

    jury(tmp_path, fails(tmp_path)).check(PROMPT, asks=True)


@pytest.mark.parametrize("status", ["no_logprobs", "api_error"])
def test_a_judge_whose_every_reply_would_be_missing_is_refused(tmp_path, monkeypatch, status):
    monkeypatch.setattr(
        RuleJudge, "ask", lambda *_: Reply(status=status, problem="it says nothing")
    )

    with pytest.raises(UserError, match=rf"came to {status}: it says nothing\. Mend the judge"):
        jury(tmp_path, GOLD).check(PROMPT, asks=True)


def test_a_judge_is_in_memory_only_while_it_judges(tmp_path, monkeypatch):
    events = []
    build = compare_judges.build_judge

    def built(section):
        judge = build(section)
        events.append("built")
        monkeypatch.setattr(judge, "close", lambda: events.append("closed"), raising=False)
        return judge

    monkeypatch.setattr(compare_judges, "build_judge", built)
    found = jury(tmp_path, GOLD)
    assert events == []
    found.check(PROMPT, asks=True)
    found.ask("gold", "test", [], {}, {})

    assert events == ["built", "closed"] * 2
