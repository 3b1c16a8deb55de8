"""What an objective says of data before training, and what it learns from."""

import pytest

from prefopt.errors import UserError
from tests.support.runs import logged, run
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


def labelled(label: bool, num: int) -> list[dict[str, object]]:
    return [{"prompt": f"p{i}", "completion": "abc", "label": label} for i in range(num)]


@pytest.mark.parametrize(
    ("objective", "rows", "words"),
    [
        ({"name": "lipo"}, [{**LIST, "scores": [0, 0, 0, 2]}], r"held\.jsonl:1: score 2.*\[0, 1\]"),
        (
            {"name": "lipo"},
            [{"prompt": "p", "chosen": "a", "rejected": "b"}],
            r"data\.evaluation\.sources\[0\].*score_chosen",
        ),
        (
            {"name": "dpo"},
            labelled(True, 2),
            r"data\.evaluation: none of the 2 records.*one response",
        ),
        (
            {"name": "bcpg_nsa", "beta": 0.5},
            [LIST],
            r"data\.evaluation\.sources: no row has a column token_weights",
        ),
    ],
)
def test_held_out_data_must_fit_the_objective_too(folder, objective, rows, words):
    weights = {"token_weights": [[1.0, 0.0]] * 4}
    write_jsonl(folder / "pairs.jsonl", [{**LIST, **weights, "scores": [1, 1, 0, 0]}] * 4)
    held_out = write_jsonl(folder / "held.jsonl", rows)

    with pytest.raises(UserError, match=words):
        run(
            folder,
            objective=objective,
            data={"evaluation": {"sources": [{"path": str(held_out)}]}},
        )


def test_held_out_data_that_feeds_only_one_term_is_pointed_out(folder, capsys):
    write_jsonl(folder / "pairs.jsonl", labelled(True, 4) + labelled(False, 4))
    held_out = write_jsonl(folder / "held.jsonl", labelled(True, 2))

    run(
        folder,
        objective={"name": "npo"},
        data={"evaluation": {"sources": [{"path": str(held_out)}]}},
    )

    assert "! Held-out data says nothing to 'forget': eval_loss lacks that part." in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("emptied", ["forget", "retain"])
def test_a_role_whose_records_are_all_held_out_is_refused(folder, emptied):
    few = write_jsonl(folder / "few.jsonl", labelled(True, 1))
    many = [{**row, "prompt": f"q{i}"} for i, row in enumerate(labelled(True, 40))]
    write_jsonl(folder / "many.jsonl", many)
    other = {"forget": "retain", "retain": "forget"}[emptied]
    sources = [
        {"path": str(few), "role": emptied},
        {"path": str(folder / "many.jsonl"), "role": other},
    ]

    with pytest.raises(UserError, match=rf"data\.evaluation: holds out every .*role: {emptied}\."):
        # Of 41 prompts one is left, and it is not the only one of its role.
        run(
            folder,
            objective={"name": "npo"},
            data={"sources": sources, "evaluation": {"num_groups": 40}, "seed": 1},
        )


def test_a_sum_asks_for_what_each_of_its_terms_reads(folder):
    write_jsonl(folder / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 4)
    both = {"name": "weighted_sum", "terms": [{"name": "kto"}, {"name": "mmpo"}]}

    with pytest.raises(UserError, match=r"data\.sources\[0\].*objective\.name: mmpo reads graded"):
        run(folder, objective=both)


def test_a_term_of_a_sum_that_nothing_feeds_says_what_it_reads(folder):
    write_jsonl(folder / "pairs.jsonl", labelled(True, 4) + labelled(False, 4))
    both = {"name": "weighted_sum", "terms": [{"name": "kto"}, {"name": "dpo"}]}

    with pytest.raises(UserError, match=r"'1\.dpo\.loss' term .*pairs of responses.*one response"):
        run(folder, objective=both)


def test_more_likely_tokens_than_there_are_tokens_are_refused(folder):
    write_jsonl(folder / "pairs.jsonl", labelled(True, 4) + labelled(False, 4))

    with pytest.raises(UserError, match=r"cringe asks for the 1001 most likely .* has 105"):
        run(folder, objective={"name": "cringe", "k": 1000})

    assert not (folder / "run").exists()


def test_distributions_over_different_vocabularies_are_refused(folder):
    write_jsonl(folder / "pairs.jsonl", labelled(True, 4) + labelled(False, 4))
    save_tiny_model(folder / "wider", vocab_size=113)
    reference = {"path": str(folder / "wider")}

    with pytest.raises(UserError, match=r"reference\.path: its vocabulary has 113 .* 105"):
        run(folder, objective={"name": "npo", "retain": "kl"}, reference=reference)

    # Log-probs of the same tokens can be compared.
    run(folder, objective={"name": "npo", "retain": "nll"}, reference=reference)


def test_kto_in_a_step_of_one_group_has_no_baseline(folder):
    save_tiny_model(folder / "other", seed=1)
    write_jsonl(folder / "pairs.jsonl", labelled(True, 2) + labelled(False, 2))

    trainer = run(
        folder,
        objective={"name": "kto"},
        reference={"path": str(folder / "other")},
        training={"groups_per_step": 1, "max_steps": 4},
    )

    assert logged(trainer, "baseline") == [0.0] * 4


def test_scores_of_roles_cannot_be_transformed(folder):
    rows = labelled(True, 4)
    write_jsonl(folder / "pairs.jsonl", rows)
    sources = [{"path": str(folder / "pairs.jsonl"), "role": "forget"}]

    with pytest.raises(
        ValueError, match=r"data\.scores: rank has no effect where sources have role"
    ):
        run(
            folder,
            objective={"name": "grad_ascent"},
            data={"sources": sources, "scores": "rank"},
        )
