import json

import pytest
from typer.testing import CliRunner

from prefopt.cli_judge import judge as group
from prefopt.errors import UserError
from prefopt.evaluation.judge.judgments import read_judgments
from prefopt.evaluation.types import Prompt

REQUESTS = ("kteaoz:", "bcdaei:", "fghiou:")
RIGHT = ("aeoktz", "aeibcd", "ioufgh")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": request} for request in REQUESTS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.yaml").write_text(
        "backend: rule\nfunction: prefopt.demo.task:gold_score\nname: gold\nlevels: [0, 1]\n"
    )
    write("right", RIGHT)
    write("wrong", ("zzzzzz",) * 3)
    write("half", ("aeozzz", "aeizzz", "iouzzz"))
    return tmp_path


def write(name, texts, *, requests=REQUESTS, system=None):
    header = {"schema": "prefopt/answers/1", "system": system or name, "model": "x", "decode": {}}
    lines = [
        {"prompt_id": Prompt(turns=(request,)).prompt_id, "sample": 0, "turns": [text]}
        for request, text in zip(requests, texts, strict=True)
    ]
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in [header, *lines])


def run(*systems, options=()):
    answers = [word for system in systems for word in ("--answers", f"{system}.jsonl")]
    command = ["run", "judge.yaml", "--prompts", "prompts.jsonl", *answers, *options]
    return CliRunner().invoke(group, command, catch_exceptions=True)


def mistake(*systems, options=()):
    result = run(*systems, options=options)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_all_pairs_are_judged_in_both_orders(folder):
    result = run("right", "wrong", "half")

    assert result.exit_code == 0, result.exception
    assert "judge gold: 18 of 18 judgments (100.0%); in judgments/gold.jsonl" in result.stdout
    _, found = read_judgments(folder / "judgments" / "gold.jsonl")
    wins = {(each.system, each.opponent): each.win for each in found}
    assert len(found) == 3 * 2 * 3
    assert wins["right", "wrong"] == wins["right", "half"] == wins["half", "wrong"] == 1.0


def test_a_named_baseline_is_what_the_others_are_compared_with(folder):
    run("right", "wrong", "half", options=["--baseline", "half", "--output", "j.jsonl"])

    _, found = read_judgments(folder / "j.jsonl")
    met = {frozenset((each.system, each.opponent)) for each in found}
    assert met == {frozenset(("right", "half")), frozenset(("wrong", "half"))}


def test_pairs_and_scores_can_both_be_asked_for(folder):
    result = run("right", "half", options=["--kind", "both", "--turns", "1"])

    assert result.exit_code == 0
    _, found = read_judgments(folder / "judgments" / "gold.jsonl")
    means = {each.system: each.reply.probs[1] for each in found if each.kind == "score"}
    assert means == pytest.approx({"right": 1.0, "half": 0.5})
    assert sum(each.kind == "pair" for each in found) == 6


def test_a_second_run_changes_nothing(folder):
    run("right", "wrong")
    before = (folder / "judgments" / "gold.jsonl").read_bytes()
    run("right", "wrong")

    assert (folder / "judgments" / "gold.jsonl").read_bytes() == before


def test_mistakes_are_one_line(folder):
    write("twin", RIGHT, system="right")
    write("few", RIGHT[:2], requests=REQUESTS[:2])
    write("other", ("x",) * 4, requests=(*REQUESTS, "what?"))

    assert "right.jsonl and twin.jsonl are both of the system 'right'" in mistake("right", "twin")
    assert "few.jsonl: no answer to 1 of 3 prompts" in mistake("right", "few")
    assert "other.jsonl: 1 of 4 answers are to other prompts" in mistake("right", "other")
    assert "absent.jsonl: no such file" in mistake("right", "absent")
    assert "give --answers of two systems" in mistake("right")
    assert "Did you mean 'right'" in mistake("right", "half", options=["--baseline", "rigth"])
    assert "which one is it?" in mistake("right", "half", options=["--pairs", "baseline"])
    assert "--kind: 'pairs'. Did you mean 'pair'" in mistake(
        "right", "half", options=["--kind", "pairs"]
    )
    assert "nothing to judge" in mistake("right", "half", options=["--turns", "2"])


def test_a_section_that_is_none_is_one_line(folder):
    for text, message in (
        ("", "a judge is a mapping with backend and its keys"),
        ("a: [", "not YAML"),
        ("backend: rul\n", "Did you mean 'rule'"),
    ):
        (folder / "judge.yaml").write_text(text)
        assert message in mistake("right", "half")
    (folder / "judge.yaml").unlink()
    assert "no such judge. Give the path of a YAML file" in mistake("right", "half")


def test_doctor_has_nothing_to_ask_of_a_replay(folder):
    run("right", "half")
    (folder / "judge.yaml").write_text("backend: replay\npath: judgments/gold.jsonl\n")

    result = CliRunner().invoke(group, ["doctor", "judge.yaml"])

    assert "nothing to examine" in str(result.exception)
