import json

import datasets
import pytest

from prefopt.data import sources
from prefopt.data.section import SourceSection
from prefopt.data.sources import open_source
from prefopt.errors import UserError
from tests.data.builders import write_lines

ROWS = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(5)]


def rows_of(path, **options):
    parts = open_source(SourceSection(path=str(path), **options), "data.sources[0]")
    return [(part.name, number, row) for part in parts for number, row in part.rows()]


def numbered(name):
    return [(name, number, row) for number, row in enumerate(ROWS, 1)]


def test_json_lines_count_lines_and_skip_blank_ones(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n  \n" + json.dumps(ROWS[1]))

    assert rows_of(path) == [("rows.jsonl", 1, ROWS[0]), ("rows.jsonl", 4, ROWS[1])]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_counts_its_elements(indent, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\ufeff \n" + json.dumps(ROWS, indent=indent) + "\n")

    assert rows_of(path) == numbered("rows.json")


def test_a_json_file_of_lines_is_read_as_lines(tmp_path):
    path = write_lines(tmp_path / "rows.json", ROWS)

    assert rows_of(path) == numbered("rows.json")


def test_a_json_array_larger_than_the_window_is_read_whole(tmp_path):
    rows = [{"prompt": "é" * 3_000_000}, {"prompt": "end"}, *({"n": n} for n in range(50_000))]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False))

    assert [row for _, _, row in rows_of(path)] == rows


def test_parquet_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")

    assert rows_of(tmp_path / "rows.parquet") == numbered("rows.parquet")


def test_a_saved_data_set_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")

    assert rows_of(tmp_path / "saved") == numbered("saved")


def test_a_split_of_a_saved_data_set_is_read(tmp_path):
    splits = {"train": ROWS[:1], "test": ROWS}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    )
    saved.save_to_disk(tmp_path / "saved")

    assert rows_of(tmp_path / "saved", split="test") == numbered("saved/test")
    assert len(rows_of(tmp_path / "saved")) == 1
    with pytest.raises(UserError, match=r"no split 'tst'. Did you mean 'test'"):
        rows_of(tmp_path / "saved", split="tst")


def test_a_folder_gives_the_files_of_the_split(tmp_path):
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "train-00000-of-00002.jsonl", ROWS[:1])
    write_lines(tmp_path / "data" / "train-00001-of-00002.jsonl", ROWS[1:3])
    write_lines(tmp_path / "data" / "test-00000-of-00001.jsonl", ROWS[3:])

    train = rows_of(tmp_path)

    assert [name for name, _, _ in train] == [
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
    ]
    assert [row for _, _, row in rows_of(tmp_path, split="test")] == ROWS[3:]
    with pytest.raises(UserError, match=r"sources\[0\].split: no file of .* is named 'validation'"):
        rows_of(tmp_path, split="validation")


def test_a_folder_without_split_names_gives_every_file(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS[:2])
    write_lines(tmp_path / "b.json", ROWS[2:])
    (tmp_path / "notes.txt").write_text("not data")

    assert [row for _, _, row in rows_of(tmp_path)] == ROWS


def test_a_hub_id_goes_to_datasets_with_name_and_split(monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    rows = rows_of("someone/pairs", name="large", split="test")

    assert calls == [(("someone/pairs", "large"), {"split": "test"})]
    assert rows == numbered("someone/pairs/large/test")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ConnectionError("Couldn't reach 'someone/pairs' on the Hub\nmore words")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    with pytest.raises(UserError) as error:
        rows_of("someone/pairs")

    assert str(error.value) == (
        "data.sources[0].path: 'someone/pairs' is no file or folder, and loading it from the hub "
        "failed: Couldn't reach 'someone/pairs' on the Hub"
    )


def test_a_missing_file_names_what_lies_near(tmp_path):
    write_lines(tmp_path / "train_rows.jsonl", ROWS)

    with pytest.raises(UserError, match=r"no file or folder .*Near it: train_rows.jsonl"):
        rows_of(tmp_path / "train_row.jsonl")


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(UserError, match=r"The folder .* is not there either"):
        rows_of(tmp_path / "nowhere" / "rows.jsonl")


def test_an_empty_file_is_said(tmp_path):
    (tmp_path / "rows.jsonl").touch()

    with pytest.raises(UserError, match=r"rows.jsonl: the file is empty"):
        rows_of(tmp_path / "rows.jsonl")


def test_an_unknown_ending_is_said(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b")

    with pytest.raises(UserError, match=r"Known endings: .json, .jsonl, .parquet"):
        rows_of(tmp_path / "rows.csv")


@pytest.mark.parametrize("option", [{"split": "test"}, {"name": "large"}])
def test_an_option_without_effect_on_a_file_is_refused(option, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)

    with pytest.raises(UserError, match=r"has no effect, .* is a file"):
        rows_of(path, **option)


def broken(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        rows_of(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{tmp_path}/")


def test_a_broken_line_is_named_with_its_column(tmp_path):
    message = broken(tmp_path, "rows.jsonl", '{"prompt": "p"}\n{"prompt": "p", chosen}\n')

    # {"prompt": "p", is 15 characters and a space: the fault is at the 17th.
    assert message.startswith("rows.jsonl:2: broken JSON at column 17: Expecting property name")


def test_a_broken_array_is_named_with_line_and_column(tmp_path):
    message = broken(tmp_path, "rows.json", '[\n {"n": 1},\n {"n": oops}\n]')

    assert message.startswith("rows.json:3: broken JSON at column 8: Expecting value")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"n": 1}', "1: broken JSON at column 10: Expecting ','"),
        ('[{"n": 1} {"n": 2}]', "1: broken JSON at column 11: Expecting ','"),
        ('[{"n": 1}]\n[]', "2: broken JSON at column 1: more text after the end"),
        ('[{"n": 1}, 3]', "2: a row must be a JSON object with named columns, got int"),
    ],
)
def test_an_array_that_is_not_well_formed_is_refused(content, problem, tmp_path):
    assert broken(tmp_path, "rows.json", content).startswith(f"rows.json:{problem}")


def test_a_line_that_is_no_object_is_refused(tmp_path):
    message = broken(tmp_path, "rows.jsonl", '{"n": 1}\n["p", "a"]\n')

    assert message.startswith("rows.jsonl:2: a row must be a JSON object")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_wrong_encoding_is_named_with_line_and_byte(name, tmp_path):
    lines = ['{"prompt": "plain"}', '{"prompt": "café"}']
    content = "\n".join(lines) if name == "rows.jsonl" else f"[{lines[0]},\n{lines[1]}]"

    message = broken(tmp_path, name, content.encode("latin-1"))

    # {"prompt": "caf is 15 bytes.
    assert message.startswith(f"{name}:2: not UTF-8 at byte 16 of the line. Convert the file")


def test_a_broken_parquet_file_is_one_line(tmp_path):
    assert broken(tmp_path, "rows.parquet", "no parquet").startswith("rows.parquet: broken parq")


def test_a_part_changes_its_fingerprint_with_its_content(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    [before] = sources.open_source(SourceSection(path=str(path)), "key")
    write_lines(path, ROWS[1:])
    [after] = sources.open_source(SourceSection(path=str(path)), "key")

    assert before.fingerprint != after.fingerprint
