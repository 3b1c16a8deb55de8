import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from prefopt.cli_exports import formats
from prefopt.errors import UserError
from prefopt.evaluation.generate.answers import read_answers
from prefopt.evaluation.judge.judgments import read_judgments
from prefopt.evaluation.statistics.official_length_control import (
    official_length_controlled,
    read_gamed,
)
from tests.support.shared import SHARED, needs_data
from tests.support.tiny import write_jsonl

FUSECHAT = SHARED / "alpaca_eval" / "FuseChat-Llama-3.2-1B-Instruct"

APP = typer.Typer()
APP.add_typer(formats, name="formats")

QUESTIONS = [{"question_id": 81 + i, "category": "stem", "turns": ["a", f"b{i}"]} for i in range(2)]
MODEL_ANSWERS = [
    {
        "question_id": 81 + i,
        "answer_id": "x" * 22,
        "model_id": "m",
        "choices": [{"index": 0, "turns": ["c", "d"]}],
        "tstamp": 1.5,
    }
    for i in range(2)
]
SINGLE = [
    {
        "question_id": 81,
        "model": "m",
        "judge": ["gpt-4", "single-v1"],
        "user_prompt": "?",
        "judgment": "[[7]]",
        "score": 7,
        "turn": turn,
        "tstamp": 1.25,
    }
    for turn in (1, 2)
]
PAIR = [
    {
        "question_id": 82,
        "model_1": "m",
        "model_2": "b",
        "g1_winner": "model_1",
        "g2_winner": "tie",
        "judge": ["gpt-4", "pair-v2"],
        "g1_user_prompt": "A?",
        "g1_judgment": "[[A]]",
        "g2_user_prompt": "B?",
        "g2_judgment": "[[C]]",
        "turn": 1,
        "tstamp": 1.25,
    }
]


def run(*arguments):
    result = CliRunner().invoke(APP, ["formats", *[str(each) for each in arguments]])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@needs_data
def test_alpaca_evals_files_go_there_and_back(tmp_path):
    outputs, annotations = FUSECHAT / "model_outputs.json", FUSECHAT / "annotations_slim.json"
    answers, judgments = tmp_path / "a.jsonl", tmp_path / "j.jsonl"

    run("import", "alpaca-outputs", outputs, answers)
    run("import", "alpaca-annotations", annotations, judgments)
    about = ("--prompts", outputs)
    run("export", "alpaca-outputs", tmp_path / "o.json", *about, "--answers", answers)
    said = run(
        *("export", "alpaca-annotations", tmp_path / "j.json", *about),
        *("--judgments", judgments, "--baseline", "gpt4_1106_preview"),
    )

    assert (tmp_path / "o.json").read_bytes() == outputs.read_bytes()
    assert (tmp_path / "j.json").read_bytes() == annotations.read_bytes()
    assert said == f"805 rows in {tmp_path / 'j.json'}\n"
    assert read_answers(answers)[0]["system"] == "FuseChat-Llama-3.2-1B-Instruct"
    assert read_judgments(judgments)[0]["judge"]["name"] == "weighted_alpaca_eval_gpt4_turbo"


@pytest.mark.parametrize(
    ("format", "rows", "option"),
    [
        ("mt-bench-answers", MODEL_ANSWERS, "--answers"),
        ("mt-bench-single", SINGLE, "--judgments"),
        ("mt-bench-pair", PAIR, "--judgments"),
    ],
)
def test_mt_benchs_files_go_there_and_back(tmp_path, format, rows, option):
    questions = write_jsonl(tmp_path / "question.jsonl", QUESTIONS)
    official = write_jsonl(tmp_path / "official.jsonl", rows)
    ours, again = tmp_path / "ours.jsonl", tmp_path / "again.jsonl"

    run("import", format, official, ours, "--prompts", questions)
    run("export", format, again, "--prompts", questions, option, ours)

    assert again.read_bytes() == official.read_bytes()


def test_outputs_of_answers_stand_in_annotations(tmp_path):
    row = {
        "instruction": "hi",
        "output_1": "x",
        "generator_1": "b",
        "output_2": "y",
        "generator_2": "m",
        "annotator": "J",
        "preference": 1.25,
    }
    official = tmp_path / "annotations.json"
    official.write_text(json.dumps([row]), encoding="utf-8")
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "hi"}])
    files = []
    for system, text in (("b", "x"), ("m", "y")):
        outputs = tmp_path / f"{system}.json"
        rows = [{"instruction": "hi", "output": text, "generator": system}]
        outputs.write_text(json.dumps(rows), encoding="utf-8")
        files.append(tmp_path / f"{system}.jsonl")
        run("import", "alpaca-outputs", outputs, files[-1])

    run("import", "alpaca-annotations", official, tmp_path / "j.jsonl")
    run(
        *("export", "alpaca-annotations", tmp_path / "again.json", "--prompts", prompts),
        *("--judgments", tmp_path / "j.jsonl", "--baseline", "b"),
        *("--answers", files[0], "--answers", files[1]),
    )

    assert (tmp_path / "again.json").read_bytes() == official.read_bytes()


def judged(tmp_path, format, rows):
    questions = write_jsonl(tmp_path / "question.jsonl", QUESTIONS)
    official = write_jsonl(tmp_path / "official.jsonl", rows)
    run("import", format, official, tmp_path / "j.jsonl", "--prompts", questions)
    return ("--prompts", questions, "--judgments", tmp_path / "j.jsonl")


def test_scores_are_a_table_with_judge_and_missing_questions(tmp_path):
    about = judged(tmp_path, "mt-bench-single", [SINGLE[0], SINGLE[1] | {"score": 4}])

    lines = run("table", "mt-bench", *about).splitlines()

    assert lines == [
        "MT-Bench protocol with judge gpt-4",
        "  score  overall  95 %  turn 1  turn 2  stem  missing",
        "  m         5.50     -    7.00    4.00  5.50        2",
    ]


def test_pairs_are_a_table_against_a_baseline(tmp_path):
    about = judged(tmp_path, "mt-bench-pair", PAIR)

    lines = run("table", "mt-bench", *about, "--baseline", "b").splitlines()

    # Orders: a win and a tie, so 0.75; by the rule that both must agree a tie.
    assert lines[2].split() == ["m", "75.00", "-", "75.00", "75.00", "3", "0", "1", "0", "50.00"]
    with pytest.raises(UserError, match="there are pairs only, no scores"):
        run("table", "mt-bench", *about)


@needs_data
def test_the_published_row_is_printed(tmp_path):
    outputs, annotations = FUSECHAT / "model_outputs.json", FUSECHAT / "annotations_slim.json"
    run("import", "alpaca-annotations", annotations, tmp_path / "j.jsonl")
    run("import", "alpaca-outputs", outputs, tmp_path / "a.jsonl")
    about = ("--prompts", outputs, "--judgments", tmp_path / "j.jsonl")
    about = (*about, "--baseline", "gpt4_1106_preview", "--answers", tmp_path / "a.jsonl")

    lines = run("table", "alpaca", *about).splitlines()
    [row] = json.loads(run("table", "alpaca", *about, "--json"))["alpaca"]

    assert lines[0] == "AlpacaEval protocol with judge weighted_alpaca_eval_gpt4_turbo"
    assert lines[2].split()[:2] == ["FuseChat-Llama-3.2-1B-Instruct", "29.92"]
    assert lines[2].split()[-6:] == ["233", "2", "570", "2259", "805", "0"]
    assert row["win_rate"] == pytest.approx(29.9219322658882, abs=1e-6)


@pytest.mark.slow
@needs_data
def test_the_official_lc_is_that_of_the_annotations_where_its_data_is_given(tmp_path):
    annotations = FUSECHAT / "annotations_slim.json"
    run("import", "alpaca-annotations", annotations, tmp_path / "j.jsonl")
    run("import", "alpaca-outputs", FUSECHAT / "model_outputs.json", tmp_path / "a.jsonl")
    gamed = tmp_path / "df_gamed.csv"
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    lines += [f"{i},{0.2 + 0.6 * (i % 2)},{i % 2 - 0.5},{i % 7 - 3},False" for i in range(805)]
    gamed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    reference = SHARED / "alpaca_eval" / "reference_gpt4_1106_preview.json"
    about = ("--prompts", reference, "--judgments", tmp_path / "j.jsonl")
    about = (*about, "--baseline", "gpt4_1106_preview", "--official-lc", gamed)

    with pytest.raises(UserError, match=r"needs the lengths of FuseChat.*Give its --answers"):
        run("table", "alpaca", *about)
    [row] = json.loads(run("table", "alpaca", *about, "--answers", tmp_path / "a.jsonl", "--json"))[
        "alpaca"
    ]

    by_text = {each["instruction"]: each for each in json.loads(annotations.read_text("utf-8"))}
    texts = [each["instruction"] for each in json.loads(reference.read_text("utf-8"))]
    rows = [by_text[text] for text in texts]
    expected = official_length_controlled(
        np.array([each["preference"] - 1 for each in rows]),
        np.array([float(each["len_1"] - each["len_2"]) for each in rows]),
        read_gamed(gamed),
    )
    assert row["official_lc"]["value"] == pytest.approx(expected["value"], abs=1e-9)
    assert row["official_lc"]["low"] == pytest.approx(expected["low"], abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["mt-bench", "--official-lc", "d.csv"], "--official-lc has no effect on mt-bench"),
        (["alpaca"], "--baseline NAME"),
        (["arena"], "no protocol 'arena'"),
        (["mt-bench", "--answers", "a.jsonl"], "--answers has no effect on mt-bench"),
        (["mt-bench", "--baseline", "x"], "nothing was judged against x"),
    ],
)
def test_a_table_that_cannot_be_is_one_line(tmp_path, arguments, problem):
    about = judged(tmp_path, "mt-bench-pair", PAIR)

    with pytest.raises(UserError, match=problem):
        run("table", *arguments, *about)


def test_judgments_of_other_prompts_are_refused(tmp_path):
    about = judged(tmp_path, "mt-bench-pair", PAIR)
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "x"}])

    with pytest.raises(UserError, match="2 of 2 judgments are of other prompts"):
        run("table", "mt-bench", "--prompts", other, *about[2:])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["import", "alpaca", "{official}", "{out}"], "no format 'alpaca'. Did you mean"),
        (["import", "mt-bench-single", "{official}", "{out}"], "Add --prompts FILE"),
        (
            ["import", "alpaca-outputs", "{official}", "{out}", "--prompts", "{questions}"],
            "--prompts has no effect",
        ),
        (
            ["import", "mt-bench-single", "{official}", "{official}", "--prompts", "{questions}"],
            "is there already",
        ),
        (
            ["import", "mt-bench-pair", "{absent}", "{out}", "--prompts", "{questions}"],
            "no such file",
        ),
        (["export", "mt-bench-answers", "{out}", "--prompts", "{questions}"], "one --answers FILE"),
        (["export", "mt-bench-pair", "{out}", "--prompts", "{questions}"], "Add --judgments FILE"),
        (
            *[["export", "alpaca-annotations", "{out}", "--prompts", "{questions}"]],
            "Add --judgments FILE",
        ),
        (
            [
                *("export", "mt-bench-pair", "{out}", "--prompts", "{questions}"),
                *("--judgments", "{absent}", "--baseline", "b"),
            ],
            "--baseline has no effect on mt-bench-pair",
        ),
        (
            [
                *("export", "alpaca-annotations", "{out}", "--prompts", "{questions}"),
                *("--judgments", "{absent}"),
            ],
            "--baseline NAME",
        ),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, arguments, problem):
    places = {
        "questions": write_jsonl(tmp_path / "question.jsonl", QUESTIONS),
        "official": write_jsonl(tmp_path / "official.jsonl", SINGLE),
        "out": tmp_path / "out.jsonl",
        "absent": tmp_path / "absent.jsonl",
    }

    with pytest.raises(UserError, match=problem) as error:
        run(*[each.format(**places) for each in arguments])

    assert "\n" not in str(error.value)
    assert not places["out"].exists()
