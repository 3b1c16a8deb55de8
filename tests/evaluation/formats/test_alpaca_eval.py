import json

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.formats.alpaca_eval import (
    read_annotations,
    read_model_outputs,
    write_annotations,
    write_model_outputs,
)
from prefopt.evaluation.types import Answer, Judgment, Prompt, Reply
from tests.support.shared import SHARED, needs_data

DATA = SHARED / "alpaca_eval"
SYSTEM = DATA / "FuseChat-Llama-3.2-1B-Instruct"

PROMPTS = [Prompt(turns=("Grüße?",), dataset="koala"), Prompt(turns=("two",))]


def answers_of(*texts):
    return [
        Answer(prompt_id=prompt.prompt_id, turns=(text,))
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]


ANSWERS = {"new": answers_of("a", "b"), "base": answers_of("c", "d")}


def judged(prompt, first, second, probs):
    status = "ok" if probs else "refusal"
    return Judgment(
        key=f"{prompt.prompt_id}/{first}",
        prompt_id=prompt.prompt_id,
        turn=1,
        sample=0,
        kind="pair",
        system=first,
        opponent=second,
        levels=(),
        judge="J",
        reply=Reply(status=status, probs=probs, raw=f"{first} first"),
        asked_at="2026-11-26T00:00:00+00:00",
    )


JUDGMENTS = [
    judged(PROMPTS[0], "new", "base", (0.75, 0.25, 0.0)),
    judged(PROMPTS[0], "base", "new", (0.5, 0.25, 0.25)),
    judged(PROMPTS[1], "new", "base", (1.0, 0.0, 0.0)),
    judged(PROMPTS[1], "base", "new", ()),
]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@needs_data
@pytest.mark.parametrize(
    "path", [SYSTEM / "model_outputs.json", DATA / "reference_gpt4_1106_preview.json"]
)
def test_real_outputs_come_back_byte_by_byte(tmp_path, path):
    system, prompts, answers = read_model_outputs(path)

    write_model_outputs(tmp_path / "out.json", prompts, answers, system)

    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()


@needs_data
def test_real_annotations_come_back_byte_by_byte(tmp_path):
    path = SYSTEM / "annotations_slim.json"
    found = read_annotations(path)

    num = write_annotations(
        tmp_path / "out.json", found.prompts, found.judgments, "gpt4_1106_preview"
    )

    assert num == len(found.judgments) == 805
    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()


def test_annotations_have_the_official_fields(tmp_path):
    path = tmp_path / "annotations.json"

    write_annotations(path, PROMPTS, JUDGMENTS, "base", ANSWERS)

    first, second = read(path)
    assert list(first) == [
        *("instruction", "dataset", "output_1", "generator_1", "output_2", "generator_2"),
        *("annotator", "preference", "preference_price_per_example"),
        *("preference_time_per_example", "preference_date", "preference_version"),
        "preference_raw_completion",
    ]
    assert (first["output_1"], first["generator_1"]) == ("c", "base")
    assert (first["output_2"], first["generator_2"]) == ("a", "new")
    assert (first["annotator"], first["dataset"]) == ("J", "koala")
    # The system wins with 0.75 shown first, and with 0.25 + 0.25 / 2 shown second.
    assert first["preference"] == 1 + (0.75 + 0.375) / 2
    # Without one of its orders there is no preference; and no data set where none is known.
    assert second["preference"] is None
    assert "dataset" not in second


def test_what_was_exported_and_imported_is_exported_alike(tmp_path):
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_annotations(first, PROMPTS, JUDGMENTS, "base", ANSWERS)
    found = read_annotations(first)

    write_annotations(second, found.prompts, found.judgments, "base", found.answers)

    assert first.read_bytes() == second.read_bytes()
    assert [prompt.prompt_id for prompt in found.prompts] == [p.prompt_id for p in PROMPTS]
    assert found.answers == {"base": ANSWERS["base"], "new": ANSWERS["new"]}
    win, missing = found.judgments
    assert win.reply.probs == (1 - 0.5625, 0.5625, 0.0)
    assert missing.reply.status == "parse_error"


@pytest.mark.parametrize(
    ("preference", "probs"),
    [
        (1, (1.0, 0.0, 0.0)),
        (2.0, (0.0, 1.0, 0.0)),
        (1.5, (0.0, 0.0, 1.0)),
        (0, (0.0, 0.0, 1.0)),
        (1.25, (0.75, 0.25, 0.0)),
    ],
)
def test_a_preference_becomes_probabilities_and_comes_back_as_written(tmp_path, preference, probs):
    row = {
        "preference": preference,
        "instruction": "a",
        "annotator": "J",
        "generator_2": "m",
        "generator_1": "b",
        "more": [1],
    }
    path = write(tmp_path / "1.json", [row])

    found = read_annotations(path)
    write_annotations(tmp_path / "2.json", found.prompts, found.judgments, "b")

    assert found.judgments[0].reply.probs == probs
    assert (tmp_path / "2.json").read_text(encoding="utf-8") == json.dumps([row])


ROW = {"instruction": "a", "generator_1": "b", "generator_2": "m", "annotator": "J"}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([ROW | {"preference": 3}], r"a\.json:1: preference 3 is not in \[1, 2\]"),
        ([ROW | {"preference": "m"}], r"a\.json:1: preference must be a number, got 'm'"),
        ([ROW | {"preference": 1.0}] * 2, r"a\.json:2: the same two systems and prompt as in"),
        ([{"generator_1": "b"}], r"a\.json:1: instruction must be a text, got None"),
        ([ROW | {"output_1": 1}], r"a\.json:1: output_1 must be a text"),
        ([], r"a\.json: the file is empty"),
    ],
)
def test_wrong_annotations_are_one_line(tmp_path, rows, problem):
    with pytest.raises(UserError, match=problem):
        read_annotations(write(tmp_path / "a.json", rows))


def test_what_cannot_be_exported_is_one_line(tmp_path):
    path = tmp_path / "out.json"
    dialogue = Prompt(turns=("a", "b"))
    answer = Answer(prompt_id=dialogue.prompt_id, turns=("c", "d"))

    with pytest.raises(UserError, match="new has no answer to prompt 'two'"):
        write_model_outputs(path, PROMPTS, ANSWERS["new"][:1], "new")
    with pytest.raises(UserError, match="is a dialogue"):
        write_model_outputs(path, [dialogue], [answer], "new")
    with pytest.raises(UserError, match="against other"):
        write_annotations(path, PROMPTS, JUDGMENTS, "other")
    assert not path.exists()


def test_prompts_without_outputs_are_no_model_outputs(tmp_path):
    with pytest.raises(UserError, match=r"no model_outputs\.json"):
        read_model_outputs(write(tmp_path / "a.json", [{"instruction": "a"}]))
