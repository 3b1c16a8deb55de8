"""`prefopt convert`: the recipe of a TRL config, its comments and notes, and what is refused."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.cli import main
from prefopt.commands.convert import recipe_text
from prefopt.commands.convert_objective import DPO_LOSSES
from prefopt.config import Recipe, recipe_of
from tests.support.pages import DOCS, blocks, text_of
from tests.support.tiny import save_tiny_model

PAGE = DOCS / "coming-from-trl.md"
BASE: dict[str, Any] = {"model_name_or_path": "some/model", "dataset_name": "some/data"}


def converted(trainer: str = "dpo", **values: Any) -> Recipe:
    return recipe_of(yaml.safe_load(recipe_text({**BASE, **values}, trainer=trainer)[0]))


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as exit_info:
        main(["convert", *map(str, arguments)])
    said = capsys.readouterr()
    return int(exit_info.value.code or 0), said.out, said.err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "dpo.yaml"
    file.write_text(yaml.safe_dump({**BASE, "padding_free": True}))
    return file


def test_the_recipe_goes_to_standard_output_and_what_is_left_out_to_standard_error(
    config: Path, capsys: pytest.CaptureFixture[str]
):
    code, out, err = run(capsys, config, "--trainer", "dpo")

    assert code == 0
    assert recipe_of(yaml.safe_load(out)).objective.name == "dpo"
    [line] = err.splitlines()
    assert line.startswith("left out padding_free: model.layout: auto pads nothing")
    assert f"# {line}" in out


def test_nothing_but_the_recipe_is_on_standard_output(config: Path):
    # A tracker that is set up greets there while transformers is imported.
    done = subprocess.run(
        [sys.executable, "-m", "prefopt", "convert", str(config)],
        env={**os.environ, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.startswith("# From dpo.yaml, by prefopt convert.\n")


def test_a_recipe_that_is_there_is_replaced_only_if_that_is_asked_for(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mine")

    code, _, err = run(capsys, config, "--output", recipe)
    assert (code, recipe.read_text()) == (2, "mine")
    assert err == f"error: {recipe} is there already. Name another file, or add --overwrite.\n"

    code, out, _ = run(capsys, config, "--output", recipe, "--overwrite")
    assert (code, out) == (0, f"recipe in {recipe}\n")
    assert recipe_of(yaml.safe_load(recipe.read_text())).model.path == "some/model"
    assert {path.name for path in tmp_path.iterdir()} == {"dpo.yaml", "recipe.yaml"}


def test_nothing_is_left_where_a_recipe_cannot_be_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, _, err = run(capsys, config, "--output", tmp_path / "none" / "recipe.yaml")

    assert code == 2
    assert "cannot write the recipe, No such file or directory." in err


def test_trls_defaults_that_are_not_ours_are_written_out():
    text, _ = recipe_text(BASE, trainer="dpo")
    recipe = converted()

    assert recipe.training.arguments == {
        "learning_rate": 1e-6,
        "bf16": True,
        "gradient_checkpointing": True,
        "save_strategy": "steps",
    }
    assert recipe.training.groups_per_step == 8
    assert recipe.data.too_long == "cut_response"
    assert recipe.model.dtype == "float32"
    [line] = [line for line in text.splitlines() if "learning_rate" in line]
    assert line.split("#")[1] == " TRL's default"


def test_a_step_holds_what_all_processes_of_trl_hold():
    values = {**BASE, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}

    for more, processes, expected in (
        ({}, None, 12),
        ({}, 2, 24),
        ({"num_processes": 4}, None, 48),
    ):
        text, _ = recipe_text({**values, **more}, trainer="dpo", processes=processes)
        assert recipe_of(yaml.safe_load(text)).training.groups_per_step == expected
    assert "# 4 x 3 x 4 processes" in text


def test_numbers_may_be_text_as_yaml_reads_them():
    assert converted(learning_rate="5e-7").training.arguments["learning_rate"] == 5e-7


@pytest.mark.parametrize(
    ("values", "trainer"),
    [
        ({}, "dpo"),
        ({"loss_type": "sigmoid"}, "dpo"),
        ({"loss_type": "kto"}, "kto"),
        ({"desirable_weight": 1.5}, "kto"),
        ({"loss_type": "simpo", "beta": 2.0}, "cpo"),
        ({"cpo_alpha": 0.0}, "cpo"),
        ({"padding_value": 0}, "orpo"),
    ],
)
def test_keys_and_losses_tell_the_trainer(values: dict[str, Any], trainer: str):
    _, notes = recipe_text({**BASE, **values})

    assert f"read as a config of TRL's {trainer}; --trainer says another." in notes


@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_every_loss_is_where_the_page_says(loss: str):
    beta = {} if loss == "sft" else {"beta": 0.3}
    smoothing = {"label_smoothing": 0.1} if DPO_LOSSES[loss].smoothed else {}
    objective = converted(loss_type=loss, **beta, **smoothing).objective.model_dump()

    inner = objective["terms"][0] if "terms" in objective else objective
    assert inner.get("beta", inner.get("tau", 0.3)) == 0.3
    rows = [line.split(" | ") for line in text_of(PAGE).splitlines() if line.startswith("| `")]
    [ours] = [row[1] for row in rows if f"`{loss}`" in row[0] or f"`loss_type: {loss}`" in row[0]]
    assert f"`name: {DPO_LOSSES[loss].name}`" in ours or f"`{DPO_LOSSES[loss].name}`" in ours


def test_several_losses_are_a_weighted_sum():
    objective = converted(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0, 1])

    assert objective.objective.model_dump()["terms"] == [
        {"name": "dpo", "beta": 0.1, "weight": 0.8},
        {"name": "nll", "reduction": "token_mean"},
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"name": "cpo", "beta": 0.1, "nll_weight": 1.0}),
        ({"cpo_alpha": 0}, {"name": "cpo", "beta": 0.1}),
        (
            {"loss_type": "simpo", "cpo_alpha": 0},
            {"name": "simpo", "beta": 0.1, "gamma": 0.5},
        ),
        ({"loss_type": "alphapo"}, {"name": "simpo", "beta": 0.1, "gamma": 0.5}),
    ],
)
def test_losses_of_cpo(values: dict[str, Any], expected: dict[str, Any]):
    assert converted("cpo", **values).objective.model_dump(exclude_none=True) == expected


def test_kto_keeps_the_order_of_the_data_and_orpo_calls_its_weight_otherwise():
    kto, orpo = converted("kto"), converted("orpo", beta=0.3)

    assert kto.training.shuffle is False
    assert orpo.objective.model_dump()["odds_weight"] == 0.3


def test_an_adapter_has_the_shape_that_trl_and_peft_would_take(tmp_path: Path):
    model = str(save_tiny_model(tmp_path / "model"))

    adapter = converted(model_name_or_path=model, use_peft=True, lora_r=8).adapter

    assert adapter is not None
    assert adapter.model_dump(exclude_defaults=True) == {
        "r": 8,
        "target_modules": ["q_proj", "v_proj"],
    }


def test_dropout_of_an_adapter_needs_that_of_the_model_in_both():
    values = {"use_peft": True, "lora_target_modules": ["all-linear"]}

    off, on = converted(**values), converted(**values, disable_dropout=False)

    assert off.adapter is not None
    assert on.adapter is not None
    assert (off.model.dropout, off.adapter.dropout) == (False, 0.0)
    assert (on.model.dropout, on.adapter.dropout) == (True, 0.05)
    assert on.adapter.target_modules == "all-linear"


def test_arguments_of_the_model_stand_above_keys_of_the_file():
    text = '{"torch_dtype": "bfloat16", "revision": "v2", "device_map": "auto"}'
    values = {**BASE, "model_init_kwargs": text, "dtype": "auto"}

    said, notes = recipe_text(values, trainer="dpo")

    model = recipe_of(yaml.safe_load(said)).model
    assert (model.dtype, model.revision) == ("bfloat16", "v2")
    assert "left out model_init_kwargs.device_map: processes place the model themselves." in notes


def test_held_out_data_is_the_test_split_or_a_share_of_a_mixture():
    of_split = converted(eval_strategy="steps", eval_steps=50, dataset_config="en")
    mixture = [
        {"path": "some/data", "split": "train[:10%]"},
        {"path": "json", "data_files": ["a.jsonl", "b.jsonl"]},
    ]
    of_share = converted(datasets=mixture, test_split_size=0.1, dataset_name=None)

    held_out = of_split.model_dump(exclude_defaults=True)["data"]["evaluation"]
    assert held_out["sources"] == ({"path": "some/data", "name": "en", "split": "test"},)
    assert [source.path for source in of_share.data.sources] == ["some/data", "a.jsonl", "b.jsonl"]
    assert of_share.data.evaluation is not None
    assert of_share.data.evaluation.fraction == 0.1
    assert of_share.training.arguments["eval_strategy"] == "no"


def test_keys_of_earlier_versions_have_their_new_names():
    recipe = converted(warmup_ratio=0.1, evaluation_strategy="epoch")

    assert recipe.training.arguments["warmup_steps"] == 0.1
    assert recipe.training.arguments.get("eval_strategy", "epoch") == "epoch"


def test_a_key_without_counterpart_can_be_left_out_knowingly(
    config: Path, capsys: pytest.CaptureFixture[str]
):
    mixture = [{"path": "some/data", "fraction": 0.5}]
    config.write_text(yaml.safe_dump({**BASE, "use_weighting": True, "datasets": mixture}))

    code, _, err = run(capsys, config)
    lines = err.splitlines()
    assert code == 2
    assert len(lines) == 2
    assert "use_weighting: True: no objective weighs pairs" in err
    assert "datasets.0.fraction: 0.5: a source has a weight instead" in err

    skip = ["--skip", "use_weighting", "--skip", "datasets.0.fraction"]
    code, out, err = run(capsys, config, *skip)
    assert code == 0
    assert "left out use_weighting: by --skip; TRL trains with it." in err
    assert recipe_of(yaml.safe_load(out)).objective.name == "dpo"


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"model_name_or_path": None}, "model_name_or_path is missing. Say which model TRL would"),
    ({"dataset_name": None}, "dataset_name is missing. Say it, or a list of datasets."),
    ({"lerning_rate": 1}, "lerning_rate: no key of dpo in TRL. Did you mean 'learning_rate'? Rem"),
    ({"learning_rate": "fast"}, "learning_rate should be a valid number, unable to parse string"),
    ({"learning_rate": True}, "learning_rate should not be true, got True. Mend the value."),
    ({"max_length": "long"}, "max_length should be a valid integer, unable to parse string as an"),
    ({"loss_type": "aot"}, "loss_type: 'aot': no objective is aot. Change it, or leave it out"),
    ({"loss_type": ["sigmoid"], "loss_weights": [1, 2]}, "loss_weights: [1.0, 2.0]: 1 losses ne"),
    ({"max_prompt_length": 512}, "max_prompt_length: a prompt is never cut; data.max_length is"),
    ({"desirable_weight": 2, "loss_type": "ipo"}, "desirable_weight (kto), loss_type: ipo (dpo or"),
    ({"max_completion_length": 9}, "max_completion_length (cpo or orpo): say which of TRL's trai"),
    ({"fp16": True}, "fp16: True: float16 overflows on summed log-probs; bf16 does not. Change"),
    ({"dtype": "float16"}, "dtype: 'float16': weights are float32 or bfloat16. Change it, or"),
    ({"load_in_4bit": True}, "load_in_4bit: True: weights of 4 bits need use_peft, in TRL too."),
    ({"model_init_kwargs": {"rope": 2}}, "model_init_kwargs.rope: 2: a recipe's model has no suc"),
    ({"model_init_kwargs": "rope"}, "model_init_kwargs: 'rope': no mapping. Change it, or leave"),
    ({"use_peft": True}, "lora_target_modules is left to peft, which decides by the model's conf"),
    ({"datasets": [{"name": "x"}]}, "datasets.0.path is missing. Say which data set it is."),
    ({"datasets": [{"path": "a", "weight": 2}]}, "datasets.0.weight: 2: an entry of datasets has"),
    ({"datasets": [{"path": "a", "data_dir": "b"}]}, "datasets.0.data_dir: 'b': name the folder"),
    ({"datasets": [{"path": "csv", "data_files": "b"}]}, "datasets.0.data_files: 'b': only files"),
    ({"datasets": [{"path": "a"}], "eval_strategy": "epoch"}, "eval_strategy: 'epoch': beside da"),
    ({"datasets": "a"}, "datasets should be a valid list, got 'a'. Mend the value."),
    ({"warmup_ratio": 0.1, "warmup_steps": 3}, "warmup_ratio is an earlier name of warmup_steps,"),
    ({"num_processes": 0}, "num_processes should be a whole number from 1, got 0."),
    ({"beta": 0}, "objective.beta should be greater than 0, got 0.0."),
]


@pytest.mark.parametrize(("values", "line"), MISTAKES, ids=[line[:30] for _, line in MISTAKES])
def test_a_mistake_is_one_line(
    values: dict[str, Any], line: str, config: Path, capsys: pytest.CaptureFixture[str]
):
    config.write_text(yaml.safe_dump({**BASE, **values}))

    code, out, err = run(capsys, config)

    assert (code, out) == (2, "")
    [said] = err.splitlines()
    assert said.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1: 2\n", "1 is no key of a TRL config, as it is no text. Remove it."),
        ("", "a TRL config is a mapping with model_name_or_path, dataset_name and other keys."),
        ("- a\n", "a TRL config is a mapping with model_name_or_path"),
        ("a: [\n", "not YAML"),
        ("beta: 1\nbeta: 2\n", "'beta' stands twice"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(
    text: str, line: str, config: Path, capsys: pytest.CaptureFixture[str]
):
    config.write_text(text)

    code, _, err = run(capsys, config)

    assert code == 2
    assert len(err.splitlines()) == 1
    assert line in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--trainer", "ppo"], "--trainer ppo: no such trainer. Did you mean 'kto'?"),
        (["--skip", "beta"], "--skip beta: the file has no such key. Remove the option."),
        (["--skip", "padding_free.x"], "--skip padding_free.x: the file has no such key."),
    ],
)
def test_an_option_that_does_not_fit_the_file_is_one_line(
    arguments: list[str], line: str, config: Path, capsys: pytest.CaptureFixture[str]
):
    code, _, err = run(capsys, config, *arguments)

    assert code == 2
    [said] = err.splitlines()
    assert said.startswith("error: ")
    assert line[:40] in said


def test_a_key_of_another_trainer_names_it(config: Path, capsys: pytest.CaptureFixture[str]):
    config.write_text(yaml.safe_dump({**BASE, "desirable_weight": 2.0}))

    code, _, err = run(capsys, config, "--trainer", "dpo")

    assert code == 2
    assert err == "error: desirable_weight: no key of dpo, but of kto. Say --trainer.\n"


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, tmp_path / "none.yaml")

    assert code == 2
    assert (
        err == f"error: {tmp_path}/none.yaml: no such TRL config. Give the path of a YAML file.\n"
    )


def test_the_pages_example_converts_to_the_recipe_that_it_shows():
    trl, recipe, *_ = map(yaml.safe_load, blocks(PAGE, "yaml"))
    text, _ = recipe_text(trl, processes=2)

    assert recipe_of(yaml.safe_load(text)).resolved() == recipe_of(recipe).resolved()


def test_the_pages_config_is_its_python_example():
    [python] = blocks(PAGE, "python")
    trl = yaml.safe_load(next(iter(blocks(PAGE, "yaml"))))
    said = {
        keyword.arg: ast.literal_eval(keyword.value)
        for node in ast.walk(ast.parse(python))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DPOConfig"
        for keyword in node.keywords
    }

    # YAML reads 1e-6 as text.
    trl["learning_rate"] = float(trl["learning_rate"])
    assert {key: trl[key] for key in trl.keys() - BASE.keys()} == said
    assert trl["model_name_or_path"] in python
    assert trl["dataset_name"] in python
