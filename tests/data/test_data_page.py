"""What docs/data.md shows is read as it says."""

import json
import re
from pathlib import Path

import pytest

from prefopt.data.formats import FORMATS
from tests.data.builders import read, write_lines
from tests.support.pages import DOCS, blocks, text_of

PAGE = DOCS / "data.md"
EXAMPLES = re.findall(
    r"^`(\w+)`, scores ([\d., ]+):\n\n```json\n(.*?)^```", text_of(PAGE), re.M | re.S
)
CONVERSIONS = list(blocks(PAGE, "python"))


def test_every_format_has_one_example():
    assert [name for name, _, _ in EXAMPLES] == [each.name for each in FORMATS]


@pytest.mark.parametrize(
    ("name", "scores", "lines"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES]
)
def test_an_example_is_told_by_its_columns_and_has_the_scores_of_the_page(
    name: str, scores: str, lines: str, tmp_path: Path
):
    info, records = read(tmp_path, [json.loads(line) for line in lines.splitlines()])

    assert info.format == name
    (record,) = records
    assert record.scores == tuple(float(score) for score in scores.split(","))
    assert len(record.responses) == len(record.scores)
    words = json.dumps([record.prompt, record.responses])
    assert "Name a prime." in words or "Sort the words.\\npear apple" in words


def test_the_conversions_give_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_datasets, with_pandas = CONVERSIONS
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    votes = {"question": "q", "answer_a": "x", "answer_b": "y", "votes_a": 2, "votes_b": 5}
    write_lines(tmp_path / "votes.jsonl", [votes])
    table = ["prompt,response,rating", "q,x,1.5", "r,z,4", "q,y,3"]
    (tmp_path / "ratings.csv").write_text("\n".join(table))

    exec(compile(with_datasets, "data.md", "exec"), {})
    exec(compile(with_pandas, "data.md", "exec"), {})

    def found(name: str) -> list[tuple[object, ...]]:
        info, records = read(tmp_path, tmp_path / name)
        assert info.format == "lists"
        return [(each.prompt, each.responses, each.scores) for each in records]

    assert found("lists.jsonl") == [("q", ("x", "y"), (2.0, 5.0))]
    assert found("rated.jsonl") == [("q", ("x", "y"), (1.5, 3.0)), ("r", ("z",), (4.0,))]
