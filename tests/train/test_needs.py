"""What an objective says of data before training, and what it learns from."""

import pytest

from prefopt.errors import UserError
from tests.support.runs import run
from tests.support.tiny import save_tiny_model, write_jsonl

LIST = {"prompt": "ab", "responses": ["c", "d", "e", "f"], "scores": [8.5, 8.5, 8.0, 3.0]}


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_jsonl(tmp_path / "pairs.jsonl", [LIST] * 4)
    return tmp_path


@pytest.mark.parametrize("name", ["infonca", "nca"])
def test_one_hot_soft_labels_are_shown_with_the_way_out(folder, capsys, name):
    run(folder, objective={"name": name, "alpha": 1e-3})

    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("! ")][-1:]
    # exp((8 - 8.5) / 1e-3) = e^-500: nothing is left but the two that share the top.
    assert "(8.5, 8.5, 8, 3)" in line
    assert "(0.500, 0.500, 0.000, 0.000)" in line
    assert "alpha" in line
    assert "minmax" in line


def test_soft_labels_that_are_soft_need_no_words(folder, capsys):
    run(folder, objective={"name": "infonca", "alpha": 1.0})

    assert "alpha" not in capsys.readouterr().out


def test_each_role_is_a_stream_with_its_number_of_groups_per_step(folder):
    rows = [{"prompt": f"p{i}", "completion": "abc"} for i in range(6)]
    write_jsonl(folder / "forget.jsonl", rows[:2])
    write_jsonl(folder / "retain.jsonl", rows)

    trainer = run(
        folder,
        objective={"name": "npo"},
        data={
            "sources": [
                {"path": str(folder / "forget.jsonl"), "role": "forget"},
                {"path": str(folder / "retain.jsonl"), "role": "retain"},
            ],
            "cache_dir": str(folder / "cache"),
        },
        training={"groups_per_step": {"forget": 1, "retain": 3}, "max_steps": 4},
    )

    shares = [trainer.train_dataset[epoch, step] for epoch in (0, 1) for step in (0, 1)]
    scores = [batch.scores.flatten().tolist() for share in shares for batch in share.micro_batches]
    assert [sorted(each) for each in scores] == [[0.0, 1.0, 1.0, 1.0]] * 4
    # Responses have 4 tokens, the end included: one to forget, three to retain.
    assert [share.denominators for share in shares] == [{"forget": 1.0, "retain": 12.0}] * 4
    ids = [name for share in shares for batch in share.micro_batches for name in batch.ids]
    assert sorted(name for name in ids if name.startswith("forget")) == [
        "forget.jsonl:1",
        "forget.jsonl:1",
        "forget.jsonl:2",
        "forget.jsonl:2",
    ]
    assert len({name for name in ids if name.startswith("retain")}) == 6


def test_a_term_that_nothing_feeds_is_refused(folder):
    rows = [{"prompt": "p", "completion": "abc", "label": False}]
    write_jsonl(folder / "pairs.jsonl", rows)

    with pytest.raises(UserError, match=r"'retain' term of objective\.name: npo.*role: retain"):
        run(folder, objective={"name": "npo"})
