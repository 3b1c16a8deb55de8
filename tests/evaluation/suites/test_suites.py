import json

import datasets
import pytest

from prefopt.errors import UserError
from prefopt.evaluation.suites import read_prompts, read_suite
from tests.support.shared import SHARED, needs_data

QUESTION = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_array(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@needs_data
def test_the_questions_of_mt_bench_come_with_their_reference_answers():
    suite = read_suite(SHARED / "mt_bench" / "question.jsonl")

    assert (suite.format, len(suite.prompts)) == ("mt_bench", 80)
    assert suite.notes == ("Reference answers of gpt-4 to 30 questions.",)
    by_id = {prompt.source_id: prompt for prompt in suite.prompts}
    assert by_id["101"].category == "reasoning"
    assert by_id["101"].reference[0].startswith("If you have just overtaken the second person")
    # The unused answer in the question's own row is another text.
    assert by_id["95"].reference is None


@needs_data
def test_the_prompts_of_alpaca_eval_come_with_the_baseline():
    suite = read_suite(SHARED / "alpaca_eval" / "reference_gpt4_1106_preview.json")

    assert (suite.format, suite.baseline) == ("alpaca_eval", "gpt4_1106_preview")
    assert len({prompt.prompt_id for prompt in suite.prompts}) == 805
    assert [answer.prompt_id for answer in suite.baseline_answers] == [
        prompt.prompt_id for prompt in suite.prompts
    ]
    mean = sum(each.num_characters for each in suite.baseline_answers) / 805
    assert int(mean) == 2049
    assert {prompt.dataset for prompt in suite.prompts} == {
        "helpful_base",
        "koala",
        "oasst",
        "selfinstruct",
        "vicuna",
    }


@needs_data
def test_the_prompts_of_a_preference_file_can_be_asked():
    path = SHARED / "preferences" / "dpo_en_demo.json"

    suite = read_suite(path)

    assert suite.format == "preferences"
    assert len(suite.prompts) == 295
    assert suite.notes == ("5 rows repeat a prompt and are left out.",)


def test_prompts_are_text_turns_or_messages(tmp_path):
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    path = write(
        tmp_path / "own.jsonl",
        [
            {"prompt": "How?", "id": "a", "category": "math", "reference": "So."},
            {"turns": ["One?", "Two?"], "reference": ["1", "2"]},
            {"messages": said},
            {"prompt": said[:2]},
        ],
    )

    plain, turns, dialogue, system = read_prompts(path)

    assert (plain.turns, plain.source_id, plain.category) == (("How?",), "a", "math")
    assert plain.reference == ("So.",)
    assert (turns.turns, turns.reference) == (("One?", "Two?"), ("1", "2"))
    assert (list(dialogue.context), dialogue.turns) == (said[:3], ("Why?",))
    assert (list(system.context), system.turns) == (said[:1], ("Hi",))


def test_a_data_set_is_read_like_a_file(tmp_path):
    rows = [{"prompt": "a", "category": None}, {"prompt": "b", "category": "math"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))

    assert [each.turns for each in read_prompts(tmp_path / "set")] == [("a",), ("b",)]


def test_a_split_of_a_folder_is_read_by_its_name(tmp_path):
    write(tmp_path / "test.jsonl", [{"prompt": "a"}])
    write(tmp_path / "train.jsonl", [{"prompt": "b"}])

    suite = read_suite(tmp_path, split="test")

    assert [each.turns for each in suite.prompts] == [("a",)]


def test_other_than_80_questions_are_said(tmp_path):
    rows = [QUESTION, QUESTION | {"question_id": 82, "turns": ["Three?", "Four?"]}]

    suite = read_suite(write(tmp_path / "q.jsonl", rows))

    assert suite.notes == ("2 questions, where MT-Bench has 80.",)


def test_questions_without_a_reference_are_said(tmp_path):
    suite = read_suite(write(tmp_path / "q.jsonl", [QUESTION | {"category": "math"}]))

    assert "No reference answer to 1 questions of math, reasoning, coding." in suite.notes


def test_reference_answers_can_be_named_where_several_lie_beside(tmp_path):
    path = write(tmp_path / "q.jsonl", [QUESTION])
    (tmp_path / "reference_answer").mkdir()
    for name in ("a", "b"):
        choices = [{"index": 0, "turns": [f"{name}1", f"{name}2"]}]
        rows = [{"question_id": 81, "choices": choices}]
        write(tmp_path / "reference_answer" / f"{name}.jsonl", rows)

    suite = read_suite(path)
    named = read_suite(path, references=tmp_path / "reference_answer" / "b.jsonl")

    assert suite.prompts[0].reference is None
    assert any("holds several files, a.jsonl, b.jsonl" in note for note in suite.notes)
    assert named.prompts[0].reference == ("b1", "b2")


MESSAGE = {"role": "assistant", "content": "x"}
WRONG = {
    "a prompt that is there twice": (
        [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}],
        r"p\.jsonl:3: the same prompt as in .*p\.jsonl:1\. Remove one",
    ),
    "an id that is there twice": (
        [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}],
        r"p\.jsonl:2: the id 1 is that of .*p\.jsonl:1 too",
    ),
    "a question that is there twice": (
        [QUESTION, QUESTION | {"question_id": 82}],
        r"p\.jsonl:2: the same prompt as in",
    ),
    "an empty prompt": ([{"prompt": "a"}, {"prompt": " \n"}], r"p\.jsonl:2: an empty prompt"),
    "an empty turn": ([{"turns": ["a", ""]}], r"p\.jsonl:1: an empty prompt"),
    "no turns": ([{"turns": []}], r"p\.jsonl:1:turns: is empty"),
    "a number for a prompt": ([{"prompt": 3}], r"p\.jsonl:1:prompt: must be text or messages"),
    "an unknown format": ([{"text": "a"}], r"p\.jsonl:1: no prompt, found the columns text"),
    "a missing prompt": (
        [{"prompt": "a"}, {"id": 2}],
        r"p\.jsonl:2: the file began as prompts, but this row has the columns id",
    ),
    "prompt and turns": (
        [{"prompt": "a", "turns": ["b"]}],
        r"p\.jsonl:1:turns: stands beside prompt",
    ),
    "messages that end with an answer": (
        [{"messages": [{"role": "user", "content": "q"}, MESSAGE]}],
        r"p\.jsonl:1:messages: do not end with a message of the user",
    ),
    "a message with a call of a tool": (
        [{"messages": [{"role": "user", "content": "q", "tool_calls": []}]}],
        r"p\.jsonl:1:messages\[0\]\.tool_calls: is no part of a prompt",
    ),
    "too few references": (
        [{"turns": ["a", "b"], "reference": "x"}],
        r"p\.jsonl:1:reference: has 1 texts for 2 turns",
    ),
    "an instruction with an input": (
        [{"instruction": "a", "input": "b", "output": "c"}],
        r"p\.jsonl:1:input: is beside the instruction",
    ),
    "outputs of several systems": (
        [
            {"instruction": "a", "output": "x", "generator": "m"},
            {"instruction": "b", "output": "y", "generator": "n"},
        ],
        r"outputs of several systems: m, n",
    ),
    "outputs that lack": (
        [{"instruction": "a", "output": "x"}, {"instruction": "b"}],
        r"1 of 2 rows have no output",
    ),
    "an output that is no text": (
        [{"instruction": "a", "output": 3}],
        r"p\.jsonl:1:output: must be text",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(tmp_path, name):
    rows, problem = WRONG[name]

    with pytest.raises(UserError, match=problem) as error:
        read_prompts(write(tmp_path / "p.jsonl", rows))

    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_empty_is_one_line(tmp_path):
    (tmp_path / "empty.jsonl").touch()

    with pytest.raises(UserError, match="no file or folder"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"empty\.jsonl: the file is empty"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(write_array(tmp_path / "none.json", []))


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n', encoding="utf-8")

    with pytest.raises(UserError, match=r"p\.jsonl:2: broken JSON"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question_id": 99, "choices": [{"turns": ["a"]}]}, "answers none of the questions"),
        ({"question_id": 81, "choices": []}, r"r\.jsonl:1: no reference answer"),
    ],
)
def test_wrong_reference_answers_are_one_line(tmp_path, row, problem):
    path = write(tmp_path / "q.jsonl", [QUESTION])

    with pytest.raises(UserError, match=problem):
        read_suite(path, references=write(tmp_path / "r.jsonl", [row]))


def test_reference_answers_go_with_mt_bench_only(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a"}])

    with pytest.raises(UserError, match="go with questions of MT-Bench only"):
        read_suite(path, references=path)
