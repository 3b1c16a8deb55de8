import io
import json
import re

import pytest
from rich.console import Console

from prefopt.commands.validate import render_preview, render_summary, run
from prefopt.errors import UserError
from tests.data.builders import bpe_tokenizer, char_tokenizer, prepare, write_lines

ROWS = [
    {"prompt": "what is", "responses": [" four", " the cat", " a mat"], "scores": [2, 1, 1]},
    {"prompt": "a person", "responses": [" asks", " asks"], "scores": [1, 0]},
    {"prompt": "too long" * 40, "responses": [" a"], "scores": [1]},
]


def shown(render, *arguments, color=False):
    """What a terminal of 80 columns shows."""
    file = io.StringIO()
    console = Console(
        file=file, width=80, force_terminal=color, color_system="standard" if color else None
    )
    render(*arguments, console) if render is render_summary else render(*arguments[:2], console, 3)
    return file.getvalue()


def test_the_report_fits_80_columns_and_says_every_number(tmp_path):
    data = prepare(tmp_path, ROWS, max_length=60, evaluation={"num_groups": 1})

    report = shown(render_summary, data.summary)

    assert max(map(len, report.splitlines())) <= 80
    assert re.search(r"rows.jsonl +│ lists +│ +3 │ +0 │ +3 │ +1 │ +1", report)
    assert re.search(r"records +│ +1 │ +1 │", report)
    assert "rows.jsonl: 1 records exceed max_length = 60 and are dropped: prompt 1, best" in (
        " ".join(report.split())
    )


def test_the_report_says_what_is_tied_and_identical(tmp_path):
    report = shown(render_summary, prepare(tmp_path, ROWS).summary)

    assert re.search(r"some scores tied +│ +1 │", report)
    assert re.search(r"all responses identical +│ +1 │", report)
    assert re.search(r"with K = 3 responses +│ +1 │", report)
    assert "tokens merged" not in report


def test_dropped_rows_are_shown_with_their_reason(tmp_path):
    rows = [*ROWS, {"prompt": "p", "responses": [""], "scores": [1]}]

    report = shown(render_summary, prepare(tmp_path, rows, invalid="drop").summary)

    assert "rows.jsonl: 1 rows dropped: is empty." in report
    assert "rows.jsonl:4:responses[0]: is empty" in report.replace("\n", "")


def test_the_preview_shows_prompt_scores_and_ends(tmp_path):
    tokenizer = bpe_tokenizer()
    data = prepare(tmp_path, ROWS[:1], tokenizer, source={"as_messages": True})

    preview = shown(render_preview, data.train, tokenizer)

    assert "─ rows.jsonl:1 ─" in preview
    assert "response 1, score 2, " in preview
    assert "response 3, score 1, " in preview
    # The prompt's own end of turn, and one for each response.
    assert preview.count("<|im_end|>") == 1 + 3


def test_the_preview_colours_scored_tokens_only(tmp_path):
    tokenizer = char_tokenizer()
    rows = [{"prompt": "p", "chosen": "ab", "rejected": "c"}]

    preview = shown(render_preview, prepare(tmp_path, rows, tokenizer).train, tokenizer, color=True)

    dim, green, cyan, reverse = "\x1b[2m", "\x1b[32m", "\x1b[36m", "\x1b[1;7m"
    assert f"{dim}p\x1b" in preview
    assert f"{green}a\x1b[0m{cyan}b\x1b[0m{reverse}<eos>\x1b" in preview


def test_the_preview_says_that_a_response_was_cut(tmp_path):
    tokenizer = char_tokenizer()
    rows = [{"prompt": "p", "chosen": "a" * 9, "rejected": "b"}]
    data = prepare(tmp_path, rows, tokenizer, max_length=5, too_long="cut_response")

    preview = shown(render_preview, data.train, tokenizer)

    assert "aaaa [cut at max_length, no end]" in preview
    assert "b<eos>" in preview


def test_the_preview_leaves_out_the_middle_of_long_sequences(tmp_path):
    tokenizer = char_tokenizer()
    rows = [{"prompt": "p" * 700, "chosen": "a", "rejected": "b"}]

    preview = shown(render_preview, prepare(tmp_path, rows, tokenizer).train, tokenizer)

    assert "... 580 tokens ..." in preview


def test_characters_of_several_tokens_are_shown_whole(tmp_path):
    tokenizer = bpe_tokenizer()
    rows = [{"prompt": "p", "chosen": " \N{SNOWMAN}", "rejected": " \N{PILE OF POO}"}]

    preview = shown(render_preview, prepare(tmp_path, rows, tokenizer).train, tokenizer)

    assert "\N{SNOWMAN}<|im_end|>" in preview
    assert "\N{PILE OF POO}<|im_end|>" in preview


def recipe(tmp_path, rows, **sections):
    char_tokenizer().save_pretrained(tmp_path / "model")
    content = {
        "model": {"path": str(tmp_path / "model")},
        "data": {
            "sources": [{"path": str(write_lines(tmp_path / "rows.jsonl", rows))}],
            "cache_dir": str(tmp_path / "cache"),
        },
        "objective": {"name": "dpo", "beta": 0.1},
        "training": {"output_dir": str(tmp_path / "run"), "groups_per_step": 2},
        **sections,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def test_validate_needs_no_weights_and_writes_no_run(tmp_path, capsys):
    run(recipe(tmp_path, ROWS), [], 1, False)

    out = capsys.readouterr().out
    assert "Records to train on" in out
    assert "rows.jsonl:1" in out
    assert "rows.jsonl:2" not in out
    # The third record has a single response and compares nothing.
    assert "dpo learns from 2 of 3." in out
    assert not (tmp_path / "run").exists()


def test_validate_prints_json_for_programs(tmp_path, capsys):
    run(recipe(tmp_path, ROWS), ["data.max_length=60"], 3, True)

    summary = json.loads(capsys.readouterr().out)
    assert summary["train"]["records"] == 2
    assert summary["sources"][0]["too_long_prompt"] == 1


def test_data_that_says_nothing_to_the_objective_is_an_error_after_the_report(tmp_path, capsys):
    tied = [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]}]

    with pytest.raises(UserError, match=r"none of the 1 records says anything"):
        run(recipe(tmp_path, tied), [], 3, False)

    assert re.search(r"all scores tied +│ +1", capsys.readouterr().out)
