"""A folder with report.json, report.html and report.md, and the same anew from report.json."""

import copy
import json

import pytest

from prefopt.commands.report import rewrite
from prefopt.errors import UserError
from prefopt.evaluation.report.verdict import verdict
from prefopt.evaluation.report.write import write_report
from tests.support.bare_report import report
from tests.support.sample_report import sample_report

WHOLE = sample_report()
# Drawing takes most of the time.
LIGHT = {**WHOLE, "frontier": WHOLE["frontier"][:2]}


def test_the_three_files_have_the_verdict_and_nothing_else_is_left(tmp_path):
    given = copy.deepcopy(LIGHT)
    write_report(given, tmp_path / "new")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["report.html", "report.json", "report.md"]
    stored = json.loads((tmp_path / "new/report.json").read_text(encoding="utf-8"))
    assert stored == {**given, "verdict": verdict(given)}
    assert given["verdict"] == []
    for name in ("report.html", "report.md"):
        assert "Not told apart at the top" in (tmp_path / "new" / name).read_text(encoding="utf-8")


def test_a_report_that_cannot_be_drawn_leaves_the_old_files(tmp_path):
    write_report(report(title="old"), tmp_path)
    broken = report(title="new", displacement=[{"method": "dpo"}])
    with pytest.raises(KeyError):
        write_report(broken, tmp_path)
    for path in tmp_path.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "old" in text
        assert "new" not in text


def test_half_a_character_becomes_a_question_mark(tmp_path):
    write_report(report(title="half \ud83d of one, 词"), tmp_path)
    for path in tmp_path.iterdir():
        assert "half ? of one, 词" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_command_writes_anew_what_report_json_says(tmp_path):
    write_report(LIGHT, tmp_path / "made")
    before = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    (tmp_path / "made/report.html").unlink()
    assert rewrite(tmp_path / "made") == tmp_path / "made"
    assert rewrite(tmp_path / "made/report.json", tmp_path / "other") == tmp_path / "other"
    for folder in ("made", "other"):
        assert {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", "its schema is None"),
        ('{"schema": "prefopt/report/0"}', "its schema is 'prefopt/report/0'"),
        ('{"schema": "prefopt/report/1"}', "methods"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        rewrite(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "report.json") in str(caught.value)
    assert not (tmp_path / "report.html").exists()
