"""An adapter run as one model that needs no peft."""

import json
import shutil
from unittest.mock import patch

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.cli import main
from prefopt.commands import merge
from prefopt.errors import UserError
from tests.support.launch import run as run_python
from tests.support.runs import LORA, logits_of, run
from tests.support.tiny import save_tiny_model, write_pairs

TRAINING = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 12)
    run(folder, "lora", adapter=LORA, training=TRAINING)
    run(folder, "dora", adapter={**LORA, "dora": True}, training=TRAINING)
    return folder


@pytest.fixture
def moved(folder, tmp_path):
    """A copy of the LoRA run that a test may spoil."""
    return shutil.copytree(folder / "lora", tmp_path / "lora")


def refusal(run_folder, output):
    with pytest.raises(UserError) as refused:
        merge.run(run_folder, output)
    message = str(refused.value)
    assert "\n" not in message
    left = [file for file in output.parent.iterdir() if file.name.endswith(".saving")]
    assert left == []
    return message


def leaves_nothing(output):
    return not output.exists()


@pytest.mark.parametrize("name", ["lora", "dora", "lora/checkpoint-1"])
def test_the_merged_model_is_base_and_adapter_together(folder, tmp_path, name):
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    start = logits_of(base)
    expected = logits_of(PeftModel.from_pretrained(base, folder / name))

    merge.run(folder / name, tmp_path / "merged")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=1e-5)
    assert (expected - start).abs().max() > 1e-3
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert {file.name for file in tmp_path.iterdir()} == {"merged"}


def test_the_merged_folder_has_tokenizer_and_template(folder, tmp_path):
    merge.run(folder / "lora", tmp_path / "merged")

    ours, theirs = (
        AutoTokenizer.from_pretrained(path) for path in (tmp_path / "merged", folder / "model")
    )
    assert ours.chat_template == theirs.chat_template
    assert ours.get_vocab() == theirs.get_vocab()


def test_the_merged_model_loads_without_peft(folder, tmp_path):
    merge.run(folder / "lora", tmp_path / "merged")

    result = run_python(
        "-c",
        "import sys; sys.modules['peft'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(sum(p.numel() for p in model.parameters()))",
        tmp_path / "merged",
    )

    assert result.returncode == 0, result.stderr
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert int(result.stdout) == sum(p.numel() for p in base.parameters())


def recipe_says(run_folder, **model):
    """Change the model section of a run's recipe."""
    file = run_folder / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["model"] |= model
    file.write_text(yaml.safe_dump(recipe))


def base_is_bfloat16(folder, tmp_path):
    """The same base, saved in bfloat16 after the run."""
    base = AutoModelForCausalLM.from_pretrained(folder / "model").bfloat16()
    base.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def base_is(path, run_folder):
    for file in run_folder.rglob("adapter_config.json"):
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "base_model_name_or_path": str(path)}))


@pytest.mark.parametrize("checkpoint", [".", "checkpoint-1"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("auto", torch.bfloat16), (None, torch.bfloat16)],
    ids=["float32", "auto", "no-recipe"],
)
def test_the_merged_model_has_the_dtype_of_the_run(
    folder, moved, tmp_path, checkpoint, dtype, expected
):
    base_is(base_is_bfloat16(folder, tmp_path), moved)
    if dtype is None:
        (moved / "recipe.yaml").unlink()
    else:
        recipe_says(moved, dtype=dtype)

    merge.run(moved / checkpoint, tmp_path / "merged")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {expected}


def test_a_base_with_code_of_its_own_is_merged_only_if_the_caller_trusts_it(
    folder, moved, tmp_path
):
    base = shutil.copytree(folder / "model", tmp_path / "base")
    (base / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    config = json.loads((base / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "auto_map": auto_map, "architectures": ["OwnForCausalLM"]}
    (base / "config.json").write_text(json.dumps(config))
    base_is(base, moved)

    recipe_says(moved, trust_remote_code=True)
    assert "cannot be loaded" in refusal(moved, tmp_path / "merged")

    merge.run(moved, tmp_path / "merged", trust_remote_code=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    assert type(merged).__name__ == "OwnForCausalLM"


def test_the_base_is_loaded_at_the_revision_of_the_run(folder, moved, tmp_path):
    recipe_says(moved, revision="v1.2")

    with patch.object(
        AutoModelForCausalLM, "from_pretrained", side_effect=OSError("stop")
    ) as loaded:
        refusal(moved, tmp_path / "merged")

    assert loaded.call_args.kwargs["revision"] == "v1.2"


def test_a_broken_recipe_is_named(moved, tmp_path):
    (moved / "recipe.yaml").write_text("model: [")
    assert "recipe.yaml: cannot be read as the recipe" in refusal(moved, tmp_path / "merged")

    (moved / "recipe.yaml").write_text("model: {path: x, dtype: float17}")
    assert "recipe.yaml: cannot be read as the recipe" in refusal(moved, tmp_path / "merged")
    assert leaves_nothing(tmp_path / "merged")


@pytest.mark.slow
def test_a_log_file_gets_no_progress_bars(folder, tmp_path):
    result = run_python("-m", "prefopt", "merge", folder / "lora", tmp_path / "merged")

    assert result.returncode == 0, result.stderr
    assert "%" not in result.stderr


def test_an_empty_output_folder_is_taken(folder, tmp_path):
    (tmp_path / "merged").mkdir()

    merge.run(folder / "lora", tmp_path / "merged")

    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_an_output_with_something_in_it_is_refused_and_kept(folder, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")

    assert "is not empty" in refusal(folder / "lora", tmp_path / "merged")
    assert [file.name for file in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_a_whole_model_is_no_adapter(folder, tmp_path):
    message = refusal(folder / "model", tmp_path / "merged")

    assert "no adapter to merge, it already is a whole model" in message
    assert leaves_nothing(tmp_path / "merged")


def test_a_missing_folder_is_named(folder, tmp_path):
    assert "nowhere: no such folder" in refusal(folder / "nowhere", tmp_path / "merged")
    assert leaves_nothing(tmp_path / "merged")


def test_a_missing_base_is_named(moved, tmp_path):
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/gone/base"
    (moved / "adapter_config.json").write_text(json.dumps(config))

    message = refusal(moved, tmp_path / "merged")

    assert "its base model /gone/base cannot be loaded" in message
    assert "base_model_name_or_path in adapter_config.json" in message
    assert leaves_nothing(tmp_path / "merged")


def test_a_base_of_another_shape_is_refused(moved, tmp_path):
    wide = save_tiny_model(tmp_path / "wide", hidden_size=64)
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(wide)
    (moved / "adapter_config.json").write_text(json.dumps(config))

    assert "does not fit its base model" in refusal(moved, tmp_path / "merged")
    assert leaves_nothing(tmp_path / "merged")


def test_an_adapter_without_tokenizer_is_refused(moved, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (moved / name).unlink()

    assert "no tokenizer beside the adapter" in refusal(moved, tmp_path / "merged")
    assert leaves_nothing(tmp_path / "merged")


def test_a_disk_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prefopt.commands.merge.os.replace", full)

    assert "No space left" in refusal(folder / "lora", tmp_path / "merged")
    assert leaves_nothing(tmp_path / "merged")


def test_the_command_prints_one_line_and_fails(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["prefopt", "merge", str(folder / "model"), str(tmp_path / "merged")]
    )

    with pytest.raises(SystemExit) as stopped:
        main()

    assert stopped.value.code == 2
    assert "no adapter to merge" in capsys.readouterr().err
