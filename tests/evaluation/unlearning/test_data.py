"""TOFU's files as they are, and what is wrong with others."""

import json

import pytest

from prefopt.data.tokenize import Encoder
from prefopt.errors import UserError
from prefopt.evaluation.unlearning.data import SPLITS, read_tofu
from prefopt.evaluation.unlearning.prompts import template_of, tokenised
from tests.support.shared import SHARED, needs_data
from tests.support.tiny import character_tokenizer
from tests.support.tofu import write_tofu

TOFU = SHARED / "unlearning" / "tofu"


@needs_data
def test_the_real_files_are_read_as_they_are():
    data = read_tofu(TOFU)

    assert {split: len(items) for split, items in data.items.items()} == {
        "forget": 400,
        "retain": 400,
        "ra": 100,
        "wf": 117,
    }
    first = data.items["forget"][0]
    assert first.answer == "The author's full name is Hsiao Yun-Hwa."
    assert first.paraphrased == "Hsiao Yun-Hwa is the complete name of the writer."
    assert len(first.perturbed) == 5
    assert data.items["wf"][0].answers == ("Paris", "Berlin", "London", "Madrid")
    assert all(item.paraphrased is None for item in data.items["ra"])


@needs_data
def test_a_forget_split_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match=r"forget01_perturbed\.json\. .* there: forget10\.$"):
        read_tofu(TOFU, "forget01")


def test_a_json_array_reads_like_lines(tmp_path):
    folder = write_tofu(tmp_path)
    lines = read_tofu(folder)
    for file in folder.glob("*.json"):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        file.write_text(json.dumps(rows), "utf-8")

    assert read_tofu(folder) == lines


def test_the_first_items_are_those_of_the_whole_set(tmp_path):
    folder = write_tofu(tmp_path)

    some, whole = read_tofu(folder, max_items=2), read_tofu(folder)

    for split in SPLITS:
        assert some.items[split] == whole.items[split][:2]
    assert some.fingerprints == whole.fingerprints


def change(path, **changes):
    """The file with its second row changed; None removes a field."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows[1] = {k: v for k, v in (rows[1] | changes).items() if v is not None}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("forget10", {"answer": "  "}, "perturbed.json:2: answer should be text that is not empty"),
        ("forget10", {"question": None}, "perturbed.json:2: question should be text"),
        ("retain", {"paraphrased_answer": None}, "json:2: paraphrased_answer should be text"),
        ("world_facts", {"perturbed_answer": None}, "json:2: perturbed_answer should be a list"),
        ("world_facts", {"perturbed_answer": []}, "json:2: perturbed_answer should be a list"),
        ("real_authors", {"perturbed_answer": ["a", ""]}, "json:2: perturbed_answer should be te"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, file, changes, message):
    folder = write_tofu(tmp_path)
    change(folder / f"{file}_perturbed.json", **changes)

    with pytest.raises(UserError, match=message):
        read_tofu(folder)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="--data: no folder"):
        read_tofu(tmp_path / "none")
    folder = write_tofu(tmp_path)
    (folder / "world_facts_perturbed.json").write_text("", "utf-8")
    with pytest.raises(UserError, match=r"world_facts_perturbed.json: holds no questions"):
        read_tofu(folder)
    (folder / "world_facts_perturbed.json").unlink()
    with pytest.raises(UserError, match=r"no file world_facts_perturbed.json"):
        read_tofu(folder)


def test_an_absent_forget_set_is_asked_for_and_no_other_one_proposed(tmp_path):
    message = r"holds no forget01_perturbed\.json\. Copy TOFU's file there, or .*: forget10\.$"
    with pytest.raises(UserError, match=message):
        read_tofu(write_tofu(tmp_path), "forget01")


def texts(template: str, tmp_path, **changes) -> list[str]:
    """The first question with each of its answers, as the model reads it."""
    tokenizer = character_tokenizer(**changes)
    items = read_tofu(write_tofu(tmp_path)).items["wf"][:1]
    [record] = tokenised(items, ["x"], template_of(template, tokenizer), Encoder(tokenizer))
    prompt = tokenizer.decode(record.prompt_ids)
    return [f"{prompt}|{tokenizer.decode(ids)}" for ids in record.response_ids]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("auto", "<u>Where is wf 0?<a>|In ab.<eos>"),
        ("chat", "<u>Where is wf 0?<a>|In ab.<eos>"),
        ("plain", "Question: Where is wf 0?\nAnswer:| In ab.<eos>"),
        ("{question}\n{answer}", "Where is wf 0?\n|In ab.<eos>"),
    ],
)
def test_a_question_is_put_as_the_template_says(tmp_path, template, expected):
    assert texts(template, tmp_path)[0] == expected


def test_without_a_chat_template_questions_are_plain(tmp_path):
    assert texts("auto", tmp_path, chat_template=None)[0].startswith("Question: ")
    with pytest.raises(UserError, match=r"no chat template\. Say plain"):
        texts("chat", tmp_path, chat_template=None)


@pytest.mark.parametrize("template", ["caht", "{question}", "{question} {answer} now", "{answer}"])
def test_a_template_without_its_places_is_refused(template):
    with pytest.raises(UserError, match="none of auto, chat and plain"):
        template_of(template, character_tokenizer())
