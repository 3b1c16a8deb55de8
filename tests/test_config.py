"""The recipe: what one YAML file may say, and one clear line for everything else."""

from pathlib import Path

import pytest
import yaml

from prefopt.config import Recipe, load_recipe
from prefopt.errors import UserError
from prefopt.train.section import REFUSED
from prefopt.yaml_text import put_overrides

MINIMAL = {
    "model": {"path": "some/model"},
    "data": {"sources": [{"path": "pairs.jsonl"}]},
    "objective": {"name": "dpo"},
    "training": {"output_dir": "runs/x"},
}


def write(folder: Path, **sections: object) -> Path:
    """A recipe file of the minimal sections and these, which replace them."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **sections}), encoding="utf-8")
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path)


def test_a_recipe_needs_four_sections(minimal: Path):
    recipe = load_recipe(minimal)

    assert recipe.model.path == "some/model"
    assert recipe.data.sources[0].path == "pairs.jsonl"
    assert recipe.objective.model_dump() == {
        "name": "dpo",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "length_normalized": False,
    }
    assert recipe.training.output_dir == Path("runs/x")
    assert (recipe.adapter, recipe.reference) == (None, None)


@pytest.mark.parametrize("section", MINIMAL)
def test_a_missing_section_is_named(tmp_path: Path, section: str):
    path = tmp_path / "recipe.yaml"
    rest = {key: value for key, value in MINIMAL.items() if key != section}
    path.write_text(yaml.safe_dump(rest), encoding="utf-8")

    with pytest.raises(UserError, match=f"^{section} is missing"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.path=x", r"^modle: unknown key\. Did you mean 'model'\?"),
        ("model.pth=x", r"^model\.pth: unknown key\. Did you mean 'path'\?"),
        ("data.max_len=9", r"^data\.max_len: unknown key\. Did you mean 'max_length'\?"),
        ("data.sources.0.pth=x", r"^data\.sources\.0\.pth: unknown key\. Did you mean 'path'\?"),
        (
            "data.evaluation.fracton=0.1",
            r"^data\.evaluation\.fracton: unknown key\. .*'fraction'\?",
        ),
        ("objective.bta=1", r"^objective\.bta: unknown key\. Did you mean 'beta'\?"),
        (
            "objective.name=simppo",
            r"^objective\.name: no objective 'simppo'\. Did you mean 'simpo'\?",
        ),
        ("reference.pth=x", r"^reference\.pth: unknown key\. Did you mean 'path'\?"),
        ("adapter.alfa=1", r"^adapter\.alfa: unknown key\. Did you mean 'alpha'\?"),
        ("training.learning_rat=1", r"^training\.learning_rat: unknown key\. .*'learning_rate'\?"),
        ("training.group_per_step=1", r"^training\.group_per_step: .*'groups_per_step'\?"),
        ("training.lr=1", r"^training\.lr: unknown key\. See transformers\.TrainingArguments\.$"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name(minimal: Path, override: str, message: str):
    with pytest.raises(UserError, match=message):
        load_recipe(minimal, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.r=0", r"^adapter\.r should be greater than or equal to 1, got 0\.$"),
        ("adapter.r=many", r"^adapter\.r should be a valid integer, .*, got 'many'\.$"),
        ("data.max_length=1", r"^data\.max_length should be greater than or equal to 2, got 1\.$"),
        ("data.too_long=cut", r"^data\.too_long should be 'drop', 'cut_response' or 'error'"),
        ("data.sources=[]", r"^data\.sources Tuple should have at least 1 item"),
        ("model.dtype=float16", r"^model\.dtype should be 'auto', .*, got 'float16'\.$"),
        ("model=null", r"^model should be a valid dictionary"),
        ("objective=dpo", r"^objective should be a mapping with a name, got 'dpo'\.$"),
        ("objective.beta=true", r"^objective\.beta should not be true or false, got True\.$"),
        ("objective.beta=-1", r"^objective\.beta should be greater than 0, got -1\.$"),
        ("training.groups_per_step=0", r"^training\.groups_per_step should be greater than or"),
        ("training.learning_rate=fast", r"^training\.learning_rate should be a valid number, "),
        ("training.learning_rate=true", r"^training\.learning_rate should be .*, got True\.$"),
        ("training.max_steps=2.5", r"^training\.max_steps should be a valid integer"),
        ("training.max_steps=0", r"^training\.max_steps should be greater than 0, or -1 to train"),
        ("training.max_steps=-2", r"^training\.max_steps should be greater than 0, .*, got -2\.$"),
        ("training.num_train_epochs=0", r"^training\.num_train_epochs should be greater than 0"),
        ("training.logging_steps=0", r"^training\.logging_steps should be greater than 0, got 0"),
        ("training.save_steps=-1", r"^training\.save_steps should be greater than 0, got -1"),
        ("training.eval_steps=0", r"^training\.eval_steps should be greater than 0, got 0"),
        ("training.learning_rate=-1e-6", r"^training\.learning_rate should be 0 or more, got -1e"),
        ("training.seed=-1", r"^training\.seed should be 0 or more, got -1\.$"),
        (
            "training.seed=4294967296",
            r"^training\.seed should be less than 2\*\*32, got 4294967296",
        ),
        ("training.data_seed=-1", r"^training\.data_seed should be 0 or more, got -1\.$"),
        (
            "training.dataloader_num_workers=-1",
            r"^training\.dataloader_num_workers should be 0 or more, got -1\.$",
        ),
    ],
)
def test_a_wrong_type_or_range_says_what_was_got(minimal: Path, override: str, message: str):
    with pytest.raises(UserError, match=message):
        load_recipe(minimal, [override])


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_training_argument_that_cannot_take_effect_is_refused(minimal: Path, key: str):
    with pytest.raises(UserError, match=rf"^training\.{key}: \w+") as error:
        load_recipe(minimal, [f"training.{key}=1"])

    assert str(error.value) == f"training.{key}: {REFUSED[key]}."


@pytest.mark.parametrize(
    ("key", "right_key"),
    [
        ("per_device_train_batch_size", "training.groups_per_step"),
        ("gradient_accumulation_steps", "tokens_per_micro_batch"),
        ("label_smoothing_factor", "objective.label_smoothing"),
        ("train_sampling_strategy", "training.shuffle"),
        ("fp16", "bf16"),
        ("resume_from_checkpoint", "--resume"),
        ("overwrite_output_dir", "--overwrite"),
        ("dataloader_pin_memory", "training.dataloader_num_workers"),
        ("torch_empty_cache_steps", "training.tokens_per_micro_batch"),
    ],
)
def test_a_refused_key_names_the_right_one(minimal: Path, key: str, right_key: str):
    with pytest.raises(UserError, match=right_key):
        load_recipe(minimal, [f"training.{key}=1"])


@pytest.mark.parametrize(
    ("key", "right_key"),
    [
        ("warmup_ratio", "training.warmup_steps, where a number below 1 such as 0.1 is a ratio"),
        ("evaluation_strategy", "training.eval_strategy"),
        ("no_cuda", "training.use_cpu"),
        ("per_gpu_train_batch_size", "training.groups_per_step"),
        ("max_length", "data.max_length"),
        ("beta", "objective.beta"),
        ("loss_type", "objective.name"),
    ],
)
def test_a_key_of_old_names_the_one_of_today(minimal: Path, key: str, right_key: str):
    with pytest.raises(UserError, match=rf"^training\.{key}: ") as error:
        load_recipe(minimal, [f"training.{key}=1"])

    assert right_key in str(error.value)


@pytest.mark.parametrize(
    "override", ["max_steps=-1", "seed=0", "save_steps=0.5", "eval_steps=null"]
)
def test_numbers_at_the_edge_of_their_range_are_taken(minimal: Path, override: str):
    assert load_recipe(minimal, [f"training.{override}"]).training.arguments


def test_an_override_replaces_and_adds(minimal: Path):
    recipe = load_recipe(
        minimal,
        [
            "objective.beta=0.5",
            "data.sources.0.path=other.jsonl",
            "adapter.target_modules=[q_proj, v_proj]",
            "training.learning_rate=3e-5",
            "training.output_dir=a=b",
        ],
    )

    assert recipe.objective.model_dump()["beta"] == 0.5
    assert recipe.data.sources[0].path == "other.jsonl"
    assert recipe.adapter is not None
    assert recipe.adapter.target_modules == ["q_proj", "v_proj"]
    assert recipe.training.arguments == {"learning_rate": 3e-5}
    # The first = ends the key.
    assert recipe.training.output_dir == Path("a=b")


def test_the_last_override_wins(minimal: Path):
    recipe = load_recipe(minimal, ["objective.beta=0.5", "objective.beta=0.2"])

    assert recipe.objective.model_dump()["beta"] == 0.2


def test_an_override_reaches_into_the_terms_of_a_sum(tmp_path: Path):
    terms = [{"name": "dpo"}, {"name": "nll", "weight": 0.2}]
    path = write(tmp_path, objective={"name": "weighted_sum", "terms": terms})

    recipe = load_recipe(path, ["objective.terms.1.weight=0.7"])

    assert recipe.objective.model_dump()["terms"][1]["weight"] == 0.7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.beta", r"^'objective\.beta' is no override\. Write key\.sub=value\.$"),
        ("=0.1", r"^'=0\.1' is no override"),
        ("model.path.deep=1", r"^model\.path\.deep: 'path' has no keys below it"),
        ("data.sources.1.path=x", r"^data\.sources\.1\.path: '1' is no index of a list of 1\.$"),
        ("data.sources.-1.path=x", r"^data\.sources\.-1\.path: '-1' is no index"),
        ("data.sources.first=x", r"^data\.sources\.first: 'first' is no index"),
    ],
)
def test_an_override_that_leads_nowhere_says_where_it_ended(
    minimal: Path, override: str, message: str
):
    with pytest.raises(UserError, match=message):
        load_recipe(minimal, [override])


def test_numbers_without_a_dot_are_numbers_though_yaml_reads_them_as_text(tmp_path: Path):
    # YAML 1.1 takes 1e-6 for a string; 1.0e-6 is its number.
    path = tmp_path / "recipe.yaml"
    text = yaml.safe_dump(MINIMAL) + "  learning_rate: 1e-6\n  weight_decay: 5e-2\n"
    path.write_text(text, encoding="utf-8")
    assert yaml.safe_load(text)["training"]["learning_rate"] == "1e-6"

    recipe = load_recipe(path)

    assert recipe.training.arguments == {"learning_rate": 1e-6, "weight_decay": 0.05}


def test_a_reference_without_use_is_refused(tmp_path: Path):
    path = write(tmp_path, objective={"name": "nll"}, reference={"path": "other/model"})

    with pytest.raises(UserError, match=r"^reference has no effect: nll needs none\."):
        load_recipe(path)


def test_a_sum_needs_a_reference_if_a_term_does(tmp_path: Path):
    reference = {"path": "other/model"}
    with_dpo = {"name": "weighted_sum", "terms": [{"name": "nll"}, {"name": "dpo"}]}
    without = {"name": "weighted_sum", "terms": [{"name": "nll"}]}

    assert load_recipe(write(tmp_path, objective=with_dpo, reference=reference)).reference
    with pytest.raises(UserError, match=r"^reference has no effect: weighted_sum needs none"):
        load_recipe(write(tmp_path, objective=without, reference=reference))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.eval_strategy=epoch", "training.eval_strategy"),
        ("training.eval_strategy=steps", "training.eval_strategy"),
        ("training.early_stopping_patience=2", "training.early_stopping_patience"),
    ],
)
def test_evaluation_without_held_out_data_is_refused(minimal: Path, override: str, key: str):
    with pytest.raises(UserError, match=rf"^{key} needs held-out data\. Add data\.evaluation"):
        load_recipe(minimal, [override])

    assert load_recipe(minimal, [override, "data.evaluation.fraction=0.1"])


def test_a_threshold_without_patience_is_refused(minimal: Path):
    overrides = ["training.early_stopping_threshold=0.1", "data.evaluation.fraction=0.1"]

    with pytest.raises(UserError, match=r"^training\.early_stopping_threshold has no effect"):
        load_recipe(minimal, overrides)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "objective": {
                "name": "weighted_sum",
                "terms": [{"name": "dpo", "beta": 0.3}, {"name": "nll", "weight": 0.2}],
            },
            "adapter": {"r": 4, "target_modules": ["q_proj"]},
            "reference": {"path": "other/model"},
            "data": {
                "sources": [{"path": "a.jsonl", "weight": 0.5}, {"path": "b", "split": "test"}],
                "evaluation": {"num_groups": 7},
                "keep": "top_k",
                "top_k": 2,
            },
            "training": {
                "output_dir": "runs/x",
                "learning_rate": 1e-6,
                "early_stopping_patience": 3,
                "report_to": ["wandb"],
                "eval_strategy": "steps",
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
            },
        },
        {"adapter": {"path": "some/adapter"}},
    ],
    ids=["minimal", "all", "adapter"],
)
def test_the_resolved_recipe_is_the_same_recipe(tmp_path: Path, sections: dict[str, object]):
    recipe = load_recipe(write(tmp_path, **sections))

    text = yaml.safe_dump(recipe.resolved())
    again = Recipe.model_validate(yaml.safe_load(text))

    assert again.resolved() == recipe.resolved()
    assert again.objective == recipe.objective
    assert again.training.arguments == recipe.training.arguments


def test_the_resolved_recipe_spells_out_the_defaults(minimal: Path):
    resolved = load_recipe(minimal).resolved()

    assert resolved["objective"]["beta"] == 0.1
    assert resolved["data"]["max_length"] == 1024
    assert resolved["training"]["groups_per_step"] == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c\n", r"recipe\.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("model:\n  path: x\n data: 3\n", r"recipe\.yaml:3:2: not YAML: "),
        ("model:\n\tpath: x\n", r"recipe\.yaml:2:1: not YAML: "),
        ("model: !!python/name:os.system x\n", r"recipe\.yaml:1:8: not YAML: "),
        ("- model\n", r"recipe\.yaml: a recipe is a mapping with model, data, objective"),
        ("", r"recipe\.yaml: a recipe is a mapping"),
    ],
)
def test_a_file_that_is_no_recipe_names_the_place(tmp_path: Path, text: str, message: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(UserError, match=message) as error:
        load_recipe(path)

    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path):
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"model: caf\xe9\n")

    with pytest.raises(UserError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"is a folder\. Give the path of a YAML file"):
        load_recipe(tmp_path)
    with pytest.raises(UserError, match=r"latin\.yaml: not UTF-8 at byte 10"):
        load_recipe(latin)


def test_the_recipe_has_a_json_schema():
    schema = Recipe.model_json_schema()

    assert set(schema["required"]) == set(MINIMAL)
    # Field docstrings become descriptions.
    assert schema["properties"]["adapter"]["description"].startswith("A LoRA adapter to train")


def test_overrides_are_yaml_below_their_keys():
    values: dict[str, object] = {}

    put_overrides(values, ["a.b=1", "a.c=[x, y]", "d=null", "e=1=2"])

    assert values == {"a": {"b": 1, "c": ["x", "y"]}, "d": None, "e": "1=2"}
    with pytest.raises(UserError, match=r"a\.b: 'a' has no keys below it"):
        put_overrides({}, ["a=1", "a.b=2"])
