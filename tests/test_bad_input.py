"""Every mistake gets one clear line on standard error, exit code 2, and leaves nothing behind."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from prefopt.cli import main
from tests.support.launch import REPOSITORY
from tests.support.tiny import character_tokenizer, save_tiny_model, write_jsonl, write_pairs

GOOD = {"prompt": "abc", "chosen": "def", "rejected": "ghi"}
LIST = {"prompt": "abc", "responses": ["d", "e"], "scores": [1, 0]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("bad") / "model")


@pytest.fixture
def refused(tmp_path, model, capsys):
    """Runs `prefopt train` on a recipe that differs in some sections; returns the error line."""
    write_pairs(tmp_path / "pairs.jsonl", 4)

    def run(*flags, rows=None, raw=None, source=None, **sections):
        data = tmp_path / "pairs.jsonl"
        if rows is not None:
            write_jsonl(data, rows)
        if raw is not None:
            data.write_bytes(raw)
        recipe = {
            "model": {"path": str(model)},
            "data": {
                "sources": [{"path": str(data), **(source or {})}],
                "cache_dir": str(tmp_path / "cache"),
            },
            "objective": {"name": "dpo"},
            "training": {"output_dir": str(tmp_path / "run"), "max_steps": 2},
        }
        for name, section in sections.items():
            recipe[name] = {**recipe.get(name, {}), **section}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(SystemExit) as exit_info:
            main(["train", str(tmp_path / "recipe.yaml"), *flags])
        lines = capsys.readouterr().err.strip().splitlines()
        assert exit_info.value.code == 2, lines
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    yield run
    leftovers = {path.name for path in tmp_path.iterdir()} - {
        "pairs.jsonl",
        "recipe.yaml",
        "cache",
        "kept",
    }
    assert not leftovers


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"trainning": {}}, ["trainning: unknown key", "Did you mean 'training'?"]),
        ({"objective": {"bta": 1}}, ["objective.bta: unknown key", "Did you mean 'beta'?"]),
        (
            {"training": {"learning_rat": 1e-3}},
            ["training.learning_rat: unknown key", "'learning_rate'"],
        ),
        ({"data": {"sorces": []}}, ["data.sorces: unknown key", "'sources'"]),
        ({"model": {"dtyp": "auto"}}, ["model.dtyp: unknown key", "'dtype'"]),
        ({"objective": {"beta": -1}}, ["objective.beta", "greater than 0", "got -1"]),
        ({"objective": {"beta": "big"}}, ["objective.beta", "number", "'big'"]),
        ({"training": {"learning_rate": "fast"}}, ["training.learning_rate", "'fast'"]),
        ({"training": {"groups_per_step": 0}}, ["training.groups_per_step", "got 0"]),
        ({"data": {"max_length": 1}}, ["data.max_length", "got 1"]),
        ({"objective": {"name": "simppo"}}, ["no objective 'simppo'", "Did you mean 'simpo'?"]),
        (
            {"training": {"per_device_train_batch_size": 4}},
            ["per_device_train_batch_size", "training.groups_per_step"],
        ),
        ({"training": {"fp16": True}}, ["training.fp16", "bf16"]),
        ({"training": {"eval_strategy": "steps"}}, ["training.eval_strategy", "data.evaluation"]),
        ({"objective": {"name": "nll"}, "reference": {}}, ["reference has no effect", "nll"]),
        ({"adapter": {"dropout": 0.1}}, ["adapter.dropout", "model.dropout"]),
        ({"model": {"quantization": "nf4"}}, ["model.quantization", "adapter"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_key(refused, sections, words):
    line = refused(**sections)

    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["pairs.jsonl", "empty"]),
        ([GOOD, {"prompt": "abc", "chosen": "def"}], ["pairs.jsonl:2", "rejected"]),
        ([GOOD, {**GOOD, "chosen": None}], ["pairs.jsonl:2", "chosen"]),
        ([GOOD, {**GOOD, "rejected": "  "}], ["pairs.jsonl:2", "rejected", "empty"]),
        ([GOOD, {**GOOD, "chosen": 7}], ["pairs.jsonl:2", "chosen"]),
        ([LIST, {**LIST, "scores": [1]}], ["pairs.jsonl:2", "2 responses", "1 score"]),
        ([LIST, {**LIST, "scores": [1, float("nan")]}], ["pairs.jsonl:2", "scores", "nan"]),
        ([{**LIST, "scores": [1, 1]}], ["none of the 1 records", "dpo"]),
        ([{"prompt": "abc"}, {"prompt": "def"}], ["pairs.jsonl", "prompt"]),
        ([{**GOOD, "prompt": "a" * 2000}], ["max_length", "2000"]),
    ],
)
def test_bad_rows_are_refused_with_their_place(refused, rows, words):
    line = refused(rows=rows)

    assert all(word in line for word in words), line


def test_a_broken_line_is_refused_with_line_and_column(refused):
    line = refused(raw=json.dumps(GOOD).encode() + b'\n{"prompt": "abc", "chosen": \n')

    assert "pairs.jsonl:2" in line
    assert "JSON" in line


def test_a_file_in_another_encoding_is_refused(refused):
    line = refused(raw=json.dumps(GOOD).encode() + '\n{"prompt": "né"}'.encode("latin-1"))

    assert "pairs.jsonl:2" in line
    assert "UTF-8" in line


def test_a_missing_file_is_refused(refused, tmp_path):
    line = refused(source={"path": str(tmp_path / "nowhere.jsonl")})

    assert "nowhere.jsonl" in line


def test_a_chat_without_a_template_is_refused(refused, tmp_path, model):
    tokenizer = tmp_path / "kept"
    character_tokenizer(chat_template=None).save_pretrained(tokenizer)
    chat = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }

    line = refused(rows=[chat], model={"tokenizer": str(tokenizer)})

    assert "chat template" in line
    assert "model.chat_template" in line


def test_a_tokenizer_without_end_of_sequence_is_refused(refused, tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "kept")

    line = refused(model={"tokenizer": str(tmp_path / "kept")})

    assert "end-of-sequence" in line
    assert "model.eos_token" in line


def test_a_text_that_brings_its_own_bos_is_refused(refused, tmp_path):
    tokenizer = _tokenizer_that_adds_bos()
    tokenizer.save_pretrained(tmp_path / "kept")

    line = refused(rows=[{**GOOD, "prompt": "<u>abc"}], model={"tokenizer": str(tmp_path / "kept")})

    assert "pairs.jsonl:1" in line
    assert "BOS" in line or "beginning-of-sequence" in line


def _tokenizer_that_adds_bos():
    from tokenizers.processors import TemplateProcessing

    tokenizer = character_tokenizer()
    tokenizer.bos_token = "<u>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<u> $A", special_tokens=[("<u>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_an_adapter_folder_as_model_is_refused(refused, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "adapter_config.json").write_text("{}")

    line = refused(model={"path": str(tmp_path / "kept")})

    assert "adapter" in line
    assert "adapter.path" in line


def test_a_tokenizer_of_another_model_is_refused(refused, tmp_path):
    save_tiny_model(tmp_path / "kept", vocab_size=20)

    line = refused(model={"path": str(tmp_path / "kept")})

    assert "model.path: the tokenizer gives token" in line
    assert "embeddings for 20 only" in line


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
@pytest.mark.parametrize("file", ["thesis.txt", "recipe.yaml"])
def test_a_folder_with_other_files_is_not_taken_for_a_run(refused, tmp_path, flag, file):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / file).write_text("years of work")

    line = refused(flag, training={"output_dir": str(tmp_path / "kept")})

    assert "no prefopt run" in line
    assert (tmp_path / "kept" / file).read_text() == "years of work"


def test_another_run_in_the_folder_is_refused_and_kept(refused, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "recipe.yaml").write_text("objective: {name: ipo}")
    (tmp_path / "kept" / "versions.json").write_text("{}")

    line = refused(training={"output_dir": str(tmp_path / "kept")})

    assert "holds another run: " in line
    assert "--overwrite" in line
    assert (tmp_path / "kept" / "recipe.yaml").read_text() == "objective: {name: ipo}"


def test_resuming_with_another_recipe_names_the_keys(tmp_path, model, capsys):
    write_pairs(tmp_path / "pairs.jsonl", 4)
    sections = {
        "model": {"path": str(model)},
        "data": {
            "sources": [{"path": str(tmp_path / "pairs.jsonl")}],
            "cache_dir": str(tmp_path / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 2},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(sections))
    with pytest.raises(SystemExit):
        main(["train", str(recipe)])
    capsys.readouterr()

    with pytest.raises(SystemExit) as exit_info:
        main(["train", str(recipe), "objective.beta=0.2", "training.seed=1", "--resume"])

    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "objective.beta (0.1 -> 0.2)" in line
    assert "training.seed (unset -> 1)" in line


_FULL_DISK = """
set -e
mount -t tmpfs -o size=700k tmpfs {disk}
set +e
{python} -m prefopt train {recipe}
echo "exit $?"
ls -A {disk}/run
{python} -c "
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained('{disk}/run/checkpoint-1')
print('the last good checkpoint loads')"
"""


needs_a_disk = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="a disk of its own needs unprivileged mounts",
)


@pytest.mark.slow
@needs_a_disk
def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, model):
    write_pairs(tmp_path / "pairs.jsonl", 8)
    (tmp_path / "disk").mkdir()
    sections = {
        "model": {"path": str(model)},
        "data": {
            "sources": [{"path": str(tmp_path / "pairs.jsonl")}],
            "cache_dir": str(tmp_path / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": str(tmp_path / "disk" / "run"),
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 1,
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    script = _FULL_DISK.format(
        disk=tmp_path / "disk", python=sys.executable, recipe=tmp_path / "recipe.yaml"
    )

    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "exit 2" in done.stdout, done.stdout + done.stderr
    assert "no space left while saving" in done.stderr, done.stdout
    assert "checkpoint-1" in done.stderr
    assert "checkpoint-2" not in done.stdout
    assert ".saving" not in done.stdout
    assert "the last good checkpoint loads" in done.stdout


_READ_ONLY = """
set -e
mount -t tmpfs -o size=20m tmpfs {disk}
{python} -m prefopt train {recipe}
rm {disk}/run/model.safetensors
mount -o remount,ro {disk}
set +e
{python} -m prefopt train {recipe} --resume
echo "exit $?"
ls -A {disk}/run
"""


@pytest.mark.slow
@needs_a_disk
def test_a_run_in_a_folder_that_has_become_read_only_does_not_go_on(tmp_path, model):
    write_pairs(tmp_path / "pairs.jsonl", 8)
    (tmp_path / "disk").mkdir()
    sections = {
        "model": {"path": str(model)},
        "data": {
            "sources": [{"path": str(tmp_path / "pairs.jsonl")}],
            "cache_dir": str(tmp_path / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {"output_dir": str(tmp_path / "disk" / "run"), "max_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    script = _READ_ONLY.format(
        disk=tmp_path / "disk", python=sys.executable, recipe=tmp_path / "recipe.yaml"
    )

    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "exit 2" in done.stdout, done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: training.output_dir: cannot write (Read-only file system)")
    assert "The last good checkpoint is" in line
    assert "checkpoint-1" in done.stdout


LABELLED = {"prompt": "abc", "completion": "def", "label": True}
SCORES_OUT_OF_RANGE = {**LIST, "scores": [7, 3]}
UNEVEN_WEIGHTS = {**LIST, "token_weights": [[1, 1], [1]]}


@pytest.mark.parametrize(
    ("objective", "rows", "words"),
    [
        *(
            ({"name": name, **more}, [GOOD], ["data.sources[0]", "score_chosen", f": {name}"])
            for name, more in (
                ("mmpo", {}),
                ("infonca", {"alpha": 1}),
                ("lipo", {}),
                ("nca", {"alpha": 1.0}),
                ("bcpg_nsa", {}),
            )
        ),
        ({"name": "mmpo"}, [LABELLED], ["data.sources[0]", "score_chosen"]),
        ({"name": "lipo"}, [LIST, SCORES_OUT_OF_RANGE], ["pairs.jsonl:2: score 7", "[0, 1]"]),
        (
            {"name": "cringe"},
            [{**LIST, "scores": [1, 0.5]}],
            ["pairs.jsonl:1: score 0.5", "0 or 1"],
        ),
        ({"name": "kto"}, [SCORES_OUT_OF_RANGE], ["pairs.jsonl:1: score 7", "labels, 0 or 1"]),
        ({"name": "npo"}, [{**LABELLED, "label": False}], ["'retain' term", "role: retain"]),
        ({"name": "npo"}, [LABELLED], ["'forget' term", "role: forget"]),
        ({"name": "grad_ascent"}, [LABELLED], ["objective.name: grad_ascent", "role: forget"]),
        ({"name": "simpo"}, [LABELLED], ["has one response", "chosen and rejected"]),
        ({"name": "ipo"}, [LABELLED], ["has one response", "chosen and rejected"]),
        ({"name": "bcpg_nsa", "beta": 0.5}, [LIST], ["data.sources", "token_weights", "bcpg_nsa"]),
        (
            {"name": "bcpg_nsa"},
            [UNEVEN_WEIGHTS],
            ["pairs.jsonl:1", "token_weights[1]", "1 weights"],
        ),
        (
            {"name": "lipo"},
            [{**LIST, "token_weights": [[1, 1]]}],
            ["token_weights", "2 responses but weights for 1"],
        ),
        (
            {"name": "lipo"},
            [{**LIST, "token_weights": [[1, "a"], [1, 1]]}],
            ["pairs.jsonl:1", "token_weights[0]"],
        ),
        (
            {"name": "weighted_sum", "terms": [{"name": "dpo"}, {"name": "npo"}]},
            [{**LABELLED, "label": False}],
            ["'0.dpo.loss' term", "weighted_sum"],
        ),
    ],
)
def test_data_that_lacks_what_an_objective_reads_is_refused(refused, objective, rows, words):
    # No model weights are there to be read: the refusal comes before.
    line = refused(objective=objective, rows=rows)

    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"name": "dpo", "beta": 0}, ["objective.beta should be greater than 0, got 0"]),
        ({"name": "cpo", "beta": -0.1}, ["objective.beta should be greater than 0, got -0.1"]),
        ({"name": "exo", "label_smoothing": 0}, ["objective.label_smoothing", "logarithm"]),
        ({"name": "robust_dpo", "label_smoothing": 0.5}, ["objective.label_smoothing", "0.5"]),
        ({"name": "cpo", "nll_weight": 0}, ["objective.nll_weight should be greater than 0"]),
        ({"name": "orpo", "odds_weight": 0}, ["objective.odds_weight should be greater than 0"]),
        ({"name": "npo", "retain_weight": 0}, ["objective.retain_weight should be greater"]),
        ({"name": "kto", "desirable_weight": 0}, ["objective.desirable_weight should be greater"]),
        ({"name": "cringe", "alpha": 0}, ["objective.alpha should be greater than 0"]),
        ({"name": "cringe", "k": 0}, ["objective.k should be greater than"]),
        ({"name": "infonca"}, ["objective.alpha is missing"]),
        (
            {"name": "weighted_sum", "terms": [{"name": "dpo", "weight": 0}]},
            ["objective.terms.0.weight must be a finite number above 0"],
        ),
        (
            {"name": "weighted_sum", "terms": [{"name": "dr_dpo"}, {"name": "kto"}]},
            ["dr_dpo and kto", "Keep one"],
        ),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(refused, objective, words):
    line = refused(objective=objective)

    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"source": {"role": "forget"}}, ["data.sources: a role has no effect", "dpo"]),
        ({"source": {"role": "keep"}}, ["data.sources.0.role", "'forget' or 'retain'"]),
        (
            {"training": {"groups_per_step": {"forget": 2}}},
            ["training.groups_per_step", "the roles of data.sources are none"],
        ),
        (
            {
                "objective": {"name": "npo"},
                "source": {"role": "forget"},
                "training": {"groups_per_step": {"forget": 2, "retain": 2}},
            },
            ["training.groups_per_step", "forget, retain", "are forget"],
        ),
        (
            {"training": {"groups_per_step": {"forget": 0, "retain": 1}}},
            ["training.groups_per_step should be greater than or equal to 1"],
        ),
    ],
)
def test_roles_that_do_not_fit_are_refused(refused, sections, words):
    line = refused(**sections)

    assert all(word in line for word in words), line
