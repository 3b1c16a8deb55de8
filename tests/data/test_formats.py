import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from prefopt.data.detect import make_reader
from prefopt.data.formats import FORMATS
from prefopt.data.section import SourceSection
from prefopt.data.sources import open_source
from prefopt.errors import UserError
from tests.data.builders import read, write_lines
from tests.support.shared import SHARED, needs_data

USER = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Hello."}
BAD = {"role": "assistant", "content": "No."}


def one(tmp_path, row, **source):
    info, records = read(tmp_path, [row], **source)
    [record] = records
    return info.format, record.prompt, record.responses, record.scores


PAIR_SCORES = (1.0, 0.0)
EXAMPLES = {
    "pairs of text": (
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
        ("pairs", "Hi?", ("Hello.", "No."), PAIR_SCORES),
    ),
    "pairs of messages": (
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ("pairs", [USER], ([GOOD], [BAD]), PAIR_SCORES),
    ),
    "pairs of messages with an implicit prompt": (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        ("pairs", [USER], ([GOOD], [BAD]), PAIR_SCORES),
    ),
    "pairs of text with an implicit prompt": (
        {"chosen": "The sky is blue", "rejected": "The sky is black"},
        ("pairs", "The sky is", (" blue", " black"), PAIR_SCORES),
    ),
    "pairs whose answers repeat the prompt": (
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        ("pairs", [USER], ([GOOD], [BAD]), PAIR_SCORES),
    ),
    "pairs with graded scores": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "score_rejected": 2},
        ("pairs", "p", ("a", "b"), (8.5, 2.0)),
    ),
    "identical answers in messages": (
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD]},
        ("pairs", [USER], ([GOOD], [GOOD]), PAIR_SCORES),
    ),
    "unpaired": (
        {"prompt": "Hi?", "completion": "No.", "label": False},
        ("unpaired", "Hi?", ("No.",), (0.0,)),
    ),
    "completions": (
        {"prompt": [USER], "completion": [GOOD]},
        ("completions", [USER], ([GOOD],), (1.0,)),
    ),
    "labelled messages": (
        {"messages": [USER, BAD], "label": 0},
        ("labelled_messages", [USER], ([BAD],), (0.0,)),
    ),
    "messages": ({"messages": [USER, GOOD]}, ("messages", [USER], ([GOOD],), (1.0,))),
    "ShareGPT pairs": (
        {
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "Hi?"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "3"},
            ],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        (
            "sharegpt_pairs",
            [
                {"role": "system", "content": "Be kind."},
                USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "f", "arguments": {}}}
                    ],
                },
                {"role": "tool", "content": "3"},
            ],
            ([GOOD], [BAD]),
            PAIR_SCORES,
        ),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No."}]},
        ("sharegpt", [USER], ([BAD],), (1.0,)),
    ),
    "lists of text": (
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [0.5, 2, -1], "model": "m"},
        ("lists", "p", ("a", "b", "c"), (0.5, 2.0, -1.0)),
    ),
    "lists with ranks": (
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]},
        ("lists", "p", ("a", "b", "c"), (1.0, 2.0, 0.0)),
    ),
    "lists with a prompt of messages": (
        {"prompt": [USER], "responses": ["Hello.", [BAD]], "scores": [1, 0]},
        ("lists", [USER], ([GOOD], [BAD]), PAIR_SCORES),
    ),
    "raw UltraFeedback": (
        {
            "instruction": "p",
            "models": ["x", "y"],
            "completions": [
                {"response": "a", "overall_score": 7.5, "model": "x"},
                {"response": "b", "overall_score": 3, "model": "y"},
            ],
        },
        ("ultrafeedback", "p", ("a", "b"), (7.5, 3.0)),
    ),
    "binarized UltraFeedback": (
        {
            "prompt": "Hi?",
            "messages": [USER, GOOD],
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "score_chosen": 9.0,
            "score_rejected": 9.0,
        },
        ("ultrafeedback_binarized", [USER], ([GOOD], [BAD]), (9.0, 9.0)),
    ),
    "Nectar": (
        {
            "prompt": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: And? \n\nAssistant: ",
            "answers": [
                {"answer": "b", "rank": 2, "model": "x"},
                {"answer": "a", "rank": 1, "model": "y"},
                {"answer": "c", "rank": 3, "model": "z"},
            ],
        },
        (
            "nectar",
            [USER, GOOD, {"role": "user", "content": "And?"}],
            tuple([{"role": "assistant", "content": said}] for said in "bac"),
            (1.0, 2.0, 0.0),
        ),
    ),
    "HelpSteer3": (
        {"context": [USER], "response1": "Hello.", "response2": "No.", "overall_preference": -2},
        ("helpsteer3", [USER], ([GOOD], [BAD]), (2.0, 0.0)),
    ),
    "HelpSteer3 the other way": (
        {"context": [USER], "response1": "No.", "response2": "Hello.", "overall_preference": 3},
        ("helpsteer3", [USER], ([BAD], [GOOD]), (0.0, 3.0)),
    ),
    "transcripts": (
        {
            "chosen": "\n\nHuman: Hi?\n\nAssistant: Yes?\n\nHuman: Oh\n\nAssistant: Good day",
            "rejected": "\n\nHuman: Hi?\n\nAssistant: Yes?\n\nHuman: Oh\n\nAssistant: Good night",
        },
        (
            "transcripts",
            "\n\nHuman: Hi?\n\nAssistant: Yes?\n\nHuman: Oh\n\nAssistant:",
            (" Good day", " Good night"),
            PAIR_SCORES,
        ),
    ),
    "instructions": (
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        ("instructions", "Add.\n1 1", ("2",), (1.0,)),
    ),
    "questions": (
        {"question": "Who?", "answer": "I."},
        ("questions", "Who?", ("I.",), (1.0,)),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_is_recognised_and_converted(name, tmp_path):
    row, expected = EXAMPLES[name]

    assert one(tmp_path, row) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_can_be_named_too(name, tmp_path):
    row, expected = EXAMPLES[name]

    assert one(tmp_path, row, format=expected[0]) == expected


def test_every_format_has_an_example():
    helpsteer2_and_labelled_sharegpt = {"helpsteer2", "labelled_sharegpt"}
    shown = {expected[0] for _, expected in EXAMPLES.values()}

    assert shown | helpsteer2_and_labelled_sharegpt == {format.name for format in FORMATS}


def test_every_format_is_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()

    assert [format.name for format in FORMATS if f"`{format.name}`" not in page] == []


def test_consecutive_helpsteer2_rows_of_a_prompt_are_one_record(tmp_path):
    rows = [
        {"prompt": "p", "response": "a", "helpfulness": 4, "verbosity": 1},
        {"prompt": "p", "response": "b", "helpfulness": 2, "verbosity": 4},
        {"prompt": "q", "response": "c", "helpfulness": 0, "verbosity": 0},
    ]

    info, records = read(tmp_path, rows)

    assert (info.format, info.num_rows, info.num_records) == ("helpsteer2", 3, 2)
    assert [record.responses for record in records] == [("a", "b"), ("c",)]
    assert [record.scores for record in records] == [(4.0, 2.0), (0.0,)]
    assert [record.id for record in records] == ["rows.jsonl:1", "rows.jsonl:3"]


def test_labelled_sharegpt_takes_the_label(tmp_path):
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No."}]

    format, _, responses, scores = one(tmp_path, {"conversations": turns, "label": False})

    assert (format, responses, scores) == ("labelled_sharegpt", ([BAD],), (0.0,))


def test_columns_are_renamed_before_the_format_is_told(tmp_path):
    row = {
        "question": "p",
        "all_generated_responses": ["a", "b"],
        "all_rm_scores": [1, 2],
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    }
    columns = {
        "prompt": "question",
        "responses": "all_generated_responses",
        "scores": "all_rm_scores",
    }

    assert one(tmp_path, row, columns=columns) == ("lists", "p", ("a", "b"), (1.0, 2.0))


def test_a_hidden_column_is_not_read(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 5}

    _, _, _, scores = one(tmp_path, row, columns={"score_chosen": None, "score_rejected": None})

    assert scores == (1.0, 0.0)


def test_as_messages_wraps_text_as_a_user_and_an_assistant_turn(tmp_path):
    row = {"prompt": "Hi?", "responses": ["Hello.", "No."], "scores": [1, 0]}

    _, prompt, responses, _ = one(tmp_path, row, as_messages=True)

    assert (prompt, responses) == ([USER], ([GOOD], [BAD]))


def test_as_messages_splits_a_transcript_into_turns(tmp_path):
    row = {
        "chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.",
        "rejected": "\n\nHuman: Hi?\n\nAssistant: No.",
    }

    _, prompt, responses, _ = one(tmp_path, row, as_messages=True)

    assert (prompt, responses) == ([USER], ([GOOD], [BAD]))


def test_tools_and_template_arguments_stay_with_the_record(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {
        "messages": [USER, GOOD],
        "tools": json.dumps(tools),
        "chat_template_kwargs": {"enable_thinking": False},
    }

    _, [record] = read(tmp_path, [row])

    assert record.tools == tools
    assert record.template_kwargs == {"enable_thinking": False}


def test_fields_that_a_table_fills_with_none_are_left_out(tmp_path):
    rows = [{"messages": [{**USER, "name": None}, {**GOOD, "name": None}]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")

    _, [record] = read(tmp_path, tmp_path / "rows.parquet")

    assert record.prompt == [USER]


BAD_ROWS = {
    "None": (
        {"prompt": "p", "chosen": None, "rejected": "b"},
        ":chosen: must be text or messages, got None",
    ),
    "empty": ({"prompt": "p", "chosen": "a", "rejected": ""}, ":rejected: is empty"),
    "white space": ({"prompt": "p", "chosen": " \n", "rejected": "b"}, ":chosen: is empty"),
    "a number": (
        {"prompt": "p", "chosen": "a", "rejected": 3},
        ":rejected: must be text or messages, got int '3'",
    ),
    "missing column": (
        {"prompt": "p", "chosen": "a"},
        ":rejected: missing column. The row has: prompt, chosen",
    ),
    "half a surrogate": (
        {"prompt": "p", "chosen": "a\ud800", "rejected": "b"},
        ":chosen: holds half",
    ),
    "a dict without role": (
        {"prompt": [USER], "chosen": [{"content": "x"}], "rejected": [BAD]},
        ":chosen[0].role: missing field",
    ),
    "a dict without content": (
        {"prompt": [USER], "chosen": [{"role": "assistant"}], "rejected": [BAD]},
        ":chosen[0].content: missing field",
    ),
    "a last turn of the user": (
        {"prompt": [USER], "chosen": [GOOD, USER], "rejected": [BAD]},
        ":chosen: must end in a turn of the assistant, got 'user'",
    ),
    "lower score for chosen": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
        ":score_chosen: the chosen response has the lower score. Hide the scores",
    ),
    "tools with text": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]},
        ":tools: has no effect on plain text",
    ),
    "an image": (
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}]}],
            "chosen": [GOOD],
            "rejected": [BAD],
        },
        ":prompt[0].content: holds a part that is not text",
    ),
}
GOOD_ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_and_column(name, tmp_path):
    row, problem = BAD_ROWS[name]

    with pytest.raises(UserError) as error:
        read(tmp_path, [GOOD_ROW, row])

    assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}:2{problem}")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache" / "records").glob("*.partial"))


BAD_LISTS = {
    "fewer scores": (
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2]},
        ":1:scores: 3 responses but 2 scores",
    ),
    "NaN": (
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, float("nan")]},
        ":1:scores[1]: must be a finite number, got nan",
    ),
    "infinity": (
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, float("inf")]},
        ":1:scores[1]: must be a finite number, got inf",
    ),
    "text for a score": (
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, "2"]},
        ":1:scores[1]: must be a number, got str '2'",
    ),
    "no response": (
        {"prompt": "p", "responses": [], "scores": []},
        ":1:responses: holds no response",
    ),
    "an empty response": (
        {"prompt": "p", "responses": ["a", "  "], "scores": [1, 2]},
        ":1:responses[1]: is empty",
    ),
    "no scores": ({"prompt": "p", "responses": ["a"]}, ":1:scores: missing column"),
    "a wrong label": (
        {"prompt": "p", "completion": "a", "label": 2},
        ":1:label: must be true, false, 1 or 0, got 2",
    ),
    "differing transcripts": (
        {
            "chosen": "\n\nHuman: Hi?\n\nAssistant: a",
            "rejected": "\n\nHuman: Ho?\n\nAssistant: b",
        },
        ":1:rejected: differs from chosen before the last Assistant turn",
    ),
    "identical text without a prompt": (
        {"chosen": "same words", "rejected": "same words"},
        ":1:rejected: chosen and rejected do not differ",
    ),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_bad_record_says_what_is_wrong(name, tmp_path):
    row, problem = BAD_LISTS[name]

    with pytest.raises(UserError) as error:
        read(tmp_path, [row])

    assert problem in str(error.value)


def test_an_error_names_the_column_as_the_file_does(tmp_path):
    row = {"question": "p", "answers": ["a", ""], "points": [1, 0]}
    columns = {"prompt": "question", "responses": "answers", "scores": "points"}

    with pytest.raises(UserError, match=r"rows.jsonl:1:answers\[1\]: is empty"):
        read(tmp_path, [row], columns=columns, format="lists")


def test_invalid_rows_can_be_dropped_and_are_counted(tmp_path):
    rows = [GOOD_ROW, {**GOOD_ROW, "chosen": ""}, {**GOOD_ROW, "rejected": "\t"}, GOOD_ROW]

    info, records = read(tmp_path, rows, invalid="drop")

    assert [record.id for record in records] == ["rows.jsonl:1", "rows.jsonl:4"]
    assert (info.num_rows, info.num_records, info.invalid) == (4, 2, {"is empty": 2})
    assert info.invalid_examples[0].endswith("rows.jsonl:2:chosen: is empty")


def test_dropping_every_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"none of 1 rows is usable. First: .*:1:chosen: is empty"):
        read(tmp_path, [{**GOOD_ROW, "chosen": ""}], invalid="drop")


def test_prompts_alone_are_recognised_as_such(tmp_path):
    with pytest.raises(UserError, match=r"only prompts and no responses, found the columns prompt"):
        read(tmp_path, [{"prompt": "p"}])


def test_unknown_columns_are_listed_with_what_was_tried(tmp_path):
    with pytest.raises(UserError, match=r"no known format has the columns x, y.*pairs .chosen, re"):
        read(tmp_path, [{"x": 1, "y": 2}])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"format": "pair"}, "sources.0..format: no format 'pair'. Did you mean 'pairs'"),
        ({"format": "lists"}, ":1:responses: missing column for format 'lists', found prompt, ch"),
        (
            {"columns": {"prompt": "promt"}},
            "columns.prompt: .* no column 'promt'. Did you mean 'pr",
        ),
        ({"columns": {"chosn": "chosen"}, "format": "pairs"}, ":1:chosen: missing column"),
        ({"columns": {"weight": "prompt"}}, "columns.weight: format 'pairs' does not read it"),
        ({"columns": {"nothing": None}}, "columns.nothing: .* has no column 'nothing'"),
    ],
)
def test_a_source_that_does_not_fit_its_file_is_refused(source, problem, tmp_path):
    with pytest.raises(UserError, match=problem):
        read(tmp_path, [GOOD_ROW], **source)


def test_as_messages_on_messages_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds messages already. Remove as_messages"):
        read(tmp_path, [{"messages": [USER, GOOD]}], as_messages=True)


def test_reading_does_not_depend_on_the_first_row_only(tmp_path):
    with pytest.raises(UserError, match=r":2:label: missing column"):
        read(tmp_path, [{"messages": [USER, GOOD], "label": True}, {"messages": [USER, BAD]}])


REAL = {
    "preferences/hh_harmless_test_400.jsonl": ("pairs", 400, {2: 400}),
    "preferences/dpo_en_demo.json": ("sharegpt_pairs", 300, {2: 300}),
    "preferences/kto_en_demo.json": ("labelled_messages", 300, {1: 300}),
    "preferences/alpaca_lists_k6.jsonl": ("lists", 200, {6: 200}),
    "text/alpaca_en_demo.json": ("instructions", 999, {1: 999}),
    "unlearning/tofu/forget10.json": ("questions", 400, {1: 400}),
}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_files_work_as_they_are(name, tmp_path):
    path = SHARED / name
    format, num_records, sizes = REAL[name]

    info, records = read(tmp_path, path)

    assert (info.format, info.num_rows, info.num_records) == (format, num_records, num_records)
    assert Counter(len(record.responses) for record in records) == sizes


@needs_data
def test_real_pairs_hold_the_very_messages_of_the_file(tmp_path):
    path = SHARED / "preferences" / "hh_harmless_test_400.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    _, records = read(tmp_path, path)

    for row, record in zip(rows, records, strict=True):
        assert record.prompt == row["prompt"]
        assert record.responses == (row["chosen"], row["rejected"])


def test_a_reader_is_made_from_the_first_row_alone(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [GOOD_ROW])
    source = SourceSection(path=str(path))

    reader = make_reader(source, open_source(source, "data.sources[0]"), "data.sources[0]")

    assert reader.format.name == "pairs"
