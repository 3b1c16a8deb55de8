from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.comparison.plan import notes_on, runs_of, with_seed
from prefopt.comparison.section import ComparisonSection, load_comparison
from prefopt.errors import UserError, check_section
from tests.support.runs import recipe

JUDGE = {"backend": "rule", "function": "prefopt.demo.task:gold_score"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base recipe, and prompts of two kinds."""
    base = recipe(tmp_path, training={"report_to": "none"}).resolved()
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    return tmp_path


def comparison(folder: Path, methods: dict[str, Any], **more: Any) -> ComparisonSection:
    values: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "base": str(folder / "base.yaml"),
        "methods": methods,
        "prompts": {"test": "test.jsonl", "validation": "validation.jsonl"},
        "judges": {"gold": JUDGE},
    }
    return check_section(ComparisonSection, {**values, **more}, "")


def test_all_combinations_of_a_grid_are_settings(folder):
    grid = {"objective.beta": [0.1, 0.5], "training.learning_rate": [1e-4, 2e-4]}

    runs = runs_of(comparison(folder, {"dpo": {"grid": grid}}))["dpo"]

    assert [run.name for run in runs] == [f"dpo-{number}-seed0" for number in range(4)]
    found = [
        (run.recipe.objective.beta, run.recipe.training.arguments["learning_rate"]) for run in runs
    ]
    assert found == [(0.1, 1e-4), (0.1, 2e-4), (0.5, 1e-4), (0.5, 2e-4)]


def test_a_methods_objective_replaces_that_of_the_base(folder):
    methods = {"simpo": {"sections": {"objective": {"name": "simpo", "gamma": 0.5}}}}

    [run] = runs_of(comparison(folder, methods))["simpo"]

    assert run.name == "simpo-seed0"
    assert run.recipe.objective.name == "simpo"
    assert run.folder == folder / "out" / "runs" / "simpo-seed0"


def test_a_seed_has_one_order_of_the_data_for_all_methods(folder):
    section = comparison(folder, {"dpo": {}, "ipo": {"sections": {"objective": {"name": "ipo"}}}})
    section = section.model_copy(update={"seeds": (3, 4)})

    runs = [run for settings in runs_of(section).values() for run in settings]
    runs += [with_seed(run, section, 4) for run in runs]

    arguments = [run.recipe.training.arguments for run in runs]
    assert [each["seed"] for each in arguments] == [3, 3, 4, 4]
    assert [each["data_seed"] for each in arguments] == [3, 3, 4, 4]
    assert len({run.folder for run in runs}) == 4


def test_a_value_that_is_wrong_names_its_method(folder):
    methods = {"dpo": {"grid": {"objective.beta": [0.1, -1.0]}}}

    with pytest.raises(UserError, match=r"^methods\.dpo \(dpo\): objective\.beta"):
        runs_of(comparison(folder, methods))


def test_a_missing_parameter_names_its_method_and_what_it_is(folder):
    methods = {"other": {"sections": {"objective": {"name": "infonca"}}}}

    message = r"^methods\.other \(infonca\): objective\.alpha is missing: .* It is: Temperature"
    with pytest.raises(UserError, match=message):
        runs_of(comparison(folder, methods))


def test_an_unknown_key_of_a_grid_names_its_method(folder):
    methods = {"dpo": {"grid": {"objective.betta": [0.1, 0.2]}}}

    with pytest.raises(UserError, match=r"methods\.dpo .* objective\.betta: .* mean 'beta'"):
        runs_of(comparison(folder, methods))


def test_methods_start_from_the_same_model(folder):
    methods = {"a": {}, "b": {"sections": {"model": {"path": "elsewhere"}}}}

    with pytest.raises(UserError, match="methods start from different models"):
        runs_of(comparison(folder, methods))


@pytest.mark.parametrize("key", ["tokenizer", "revision", "chat_template", "eos_token"])
def test_methods_read_text_in_the_same_way(folder, key):
    methods = {"a": {}, "b": {"sections": {"model": {key: "another"}}}}

    with pytest.raises(UserError, match=f"different models: .*; .* with {key} another"):
        runs_of(comparison(folder, methods))


def test_methods_go_on_from_the_same_adapter(folder):
    methods = {"a": {}, "b": {"sections": {"adapter": {"path": "elsewhere"}}}}

    with pytest.raises(UserError, match="with adapter elsewhere"):
        runs_of(comparison(folder, methods))


def test_two_settings_with_one_folder_are_refused(folder):
    methods = {"dpo": {"grid": {"objective.beta": [0.1, 0.5]}}, "dpo-1": {}}

    said = r"methods\.dpo-1 and methods\.dpo would both .* dpo-1-seed0"
    with pytest.raises(UserError, match=said):
        runs_of(comparison(folder, methods))


def test_fewer_groups_in_a_step_are_a_smaller_budget(folder):
    methods = {"dpo": {}, "ipo": {"sections": {"training": {"groups_per_step": 1}}}}

    [note] = notes_on(runs_of(comparison(folder, methods)))
    assert note.startswith("Unequal budget: groups_per_step is dpo ")


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        ({"dpo": {}}, {"base": None}, r"methods\.dpo has no recipe"),
        ({"start": {}}, {}, r"methods\.start: the start has that name"),
        ({"longest": {}}, {}, r"methods\.longest: a sanity row has that name"),
        ({"dpo": {}}, {"baseline": "dop"}, r"no method 'dop'\. Did you mean 'dpo'"),
        ({"dpo": {}}, {"seeds": [1, 1]}, "should be different numbers"),
        ({"dpo": {"grid": {"objective.beta": []}}}, {}, "has no value for objective.beta"),
        (
            {"dpo": {"grid": {"objective.beta": [1, 1]}}},
            {},
            "tries a value of objective.beta twice",
        ),
        ({"../dpo": {}}, {}, "should match pattern"),
        (
            {"dpo": {"grid": {"objective.beta": [0.1, 0.2]}}},
            {"prompts": {"test": "t.jsonl"}},
            "picked by prompts of their own",
        ),
        ({"dpo": {}}, {"judges": {"j": {"backend": "rul"}}}, r"judges\.j\.backend .*'rule'"),
        ({"dpo": {}}, {"generation": {"max_new": 3}}, "generation.max_new: unknown key"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(folder, methods, more, message):
    with pytest.raises(UserError, match=message) as caught:
        comparison(folder, methods, **more)

    assert "\n" not in str(caught.value)


def test_unequal_tuning_budget_and_data_are_said(folder):
    methods = {
        "dpo": {"grid": {"objective.beta": [0.1, 0.5]}},
        "ipo": {"sections": {"objective": {"name": "ipo"}, "training": {"max_steps": 7}}},
        "nll": {"sections": {"objective": {"name": "nll"}, "data": {"scores": "rank"}}},
    }

    notes = notes_on(runs_of(comparison(folder, methods)))

    assert notes == [
        "Unequal tuning: settings tried are dpo 2, ipo 1, nll 1.",
        "The section data differs between methods: dpo, ipo; nll.",
        "Unequal budget: max_steps is dpo 2, ipo 7, nll 2.",
    ]


def test_a_file_is_read_as_it_is_written(folder):
    section = comparison(folder, {"dpo": {"grid": {"objective.beta": [0.1, 0.5]}}})
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(section.model_dump(mode="json")), encoding="utf-8")

    assert load_comparison(file) == section


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such comparison"),
        ("a: [", "not YAML"),
        ("- a", "a comparison is a mapping"),
        ("seeds: [0]\nseeds: [1]\n", r"comparison\.yaml:2:1: not YAML: 'seeds' stands twice"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, text, message):
    file = tmp_path / "comparison.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")

    with pytest.raises(UserError, match=message):
        load_comparison(file)
