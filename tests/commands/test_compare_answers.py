"""Answers and measurements that are on disk count only for what they are of."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.commands import compare_answers, compare_policies
from prefopt.commands.compare_answers import Answering, start_of, with_system
from prefopt.commands.compare_measure import check_kl_prompts
from prefopt.commands.compare_policies import measured_policies
from prefopt.comparison.plan import runs_of
from prefopt.comparison.section import ComparisonSection, KlSection
from prefopt.demo.model import save_start
from prefopt.errors import UserError, check_section
from prefopt.evaluation.generate.answers import read_answers
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Message, Prompt
from prefopt.models.section import ModelSection
from tests.support.runs import recipe

PROMPTS = [Prompt(turns=(text,)) for text in ("kteaoz:", "bcdaei:")]


@pytest.fixture
def start(tmp_path: Path) -> dict[str, Any]:
    """A recipe that starts from the demo's model."""
    save_start(tmp_path / "start", seed=0)
    return {"path": str(tmp_path / "start")}


def answering(folder: Path, model: dict[str, Any], **generation: Any) -> Answering:
    section = GenerationSection(max_new_tokens=4, **generation)
    return Answering(folder / "answers", section, recipe(folder, model=model))


def loads_nothing(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(compare_answers, "backend_of", refuse)


def test_answers_that_are_there_need_no_model(tmp_path, start, monkeypatch):
    first = answering(tmp_path, start).answers("test", PROMPTS, [])
    loads_nothing(monkeypatch)

    assert answering(tmp_path, start).answers("test", PROMPTS, []) == first
    assert [each.prompt_id for each in first["start"]]


def test_whole_files_of_other_settings_prompts_or_weights_are_refused_unloaded(
    tmp_path, start, monkeypatch
):
    answering(tmp_path, start).answers("test", PROMPTS, [])
    loads_nothing(monkeypatch)

    with pytest.raises(UserError, match=r"decode\.temperature was 0\.0, is 0\.5.*remove this one"):
        answering(tmp_path, start, temperature=0.5).answers("test", PROMPTS, [])
    others = [PROMPTS[0], Prompt(turns=("fghiou:",))]
    with pytest.raises(UserError, match="prompts was"):
        answering(tmp_path, start).answers("test", others, [])
    save_start(tmp_path / "start", seed=1)
    with pytest.raises(UserError, match="weights was"):
        answering(tmp_path, start).answers("test", PROMPTS, [])


def test_a_file_that_was_made_and_not_begun_is_begun(tmp_path, start):
    file = tmp_path / "answers" / "test" / "start.jsonl"
    file.parent.mkdir(parents=True)
    file.touch()

    assert len(answering(tmp_path, start).answers("test", PROMPTS, [])["start"]) == 2


def test_the_start_reads_prompts_by_the_template_of_the_recipe(tmp_path, start):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}", encoding="utf-8")
    dialogue = [Prompt(turns=("kteaoz:", "bcdaei:"))]

    model = {**start, "chat_template": str(template)}
    found = answering(tmp_path, model).answers("test", dialogue, [])

    assert len(found["start"][0].turns) == 2
    assert read_answers(tmp_path / "answers/test/start.jsonl")[0]["chat_template"] is not None


def test_what_a_run_starts_from_is_the_adapter_that_it_goes_on_with(tmp_path):
    goes_on = recipe(tmp_path, adapter={"path": "some/adapter"})

    assert start_of(goes_on)[1] == goes_on.adapter
    assert start_of(recipe(tmp_path, adapter={"r": 4}))[1] is None


def test_a_system_message_stands_before_prompts_that_bring_none():
    own = Message(role="system", content="own")
    prompts = [Prompt(turns=("a",)), Prompt(turns=("b",), context=(own,))]

    found = with_system(prompts, "said")

    assert [each.context[0]["content"] for each in found] == ["said", "own"]
    assert with_system(prompts, None) == prompts


def test_prompts_without_room_for_answers_are_refused_before_training(start):
    model = ModelSection(**start)
    file = Path(start["path"]) / "config.json"
    most = json.loads(file.read_text(encoding="utf-8"))["max_position_embeddings"]

    check_kl_prompts(model, PROMPTS, KlSection(max_new_tokens=4))
    with pytest.raises(UserError, match=rf"^kl\.max_new_tokens: .* the model reads {most}"):
        check_kl_prompts(model, PROMPTS, KlSection(max_new_tokens=most))


class CountingMeter:
    """Measures nothing, and counts how often."""

    num_measured = 0

    def __init__(self, *_: Any) -> None: ...

    def measure(self, *_: Any) -> dict[str, Any]:
        CountingMeter.num_measured += 1
        return {"pairs": {}}


def test_policies_are_measured_anew_where_settings_prompts_or_weights_changed(
    tmp_path, start, monkeypatch
):
    monkeypatch.setattr(compare_policies, "PolicyMeter", CountingMeter)
    monkeypatch.setattr(CountingMeter, "num_measured", 0)
    base = recipe(tmp_path, model=start).resolved()
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    values = {
        "output_dir": str(tmp_path / "out"),
        "base": str(tmp_path / "base.yaml"),
        "methods": {"dpo": {}},
        "prompts": {"test": "test.jsonl"},
        "judges": {"gold": {"backend": "rule", "function": "prefopt.demo.task:gold_score"}},
    }

    def measured(prompts: list[Prompt] = PROMPTS, **more: Any) -> int:
        section = check_section(ComparisonSection, {**values, **more}, "")
        [run] = runs_of(section)["dpo"]
        if not run.folder.exists():
            save_start(run.folder, seed=1)
            text = yaml.safe_dump(run.recipe.resolved())
            (run.folder / "recipe.yaml").write_text(text, encoding="utf-8")
        measured_policies(section, run.recipe, [run], {run.name}, prompts)
        return CountingMeter.num_measured

    assert measured() == measured() == measured(title="Another title") == 1
    assert measured(kl={"num_samples": 2}) == 2
    assert measured(kl=None) == 3
    assert measured(PROMPTS[:1], kl=None) == 3
    assert measured(PROMPTS[:1]) == 4
    assert measured(PROMPTS[:1], entanglement={"groups": 2}) == 5
    save_start(tmp_path / "out/runs/dpo-seed0", seed=2)
    assert measured(PROMPTS[:1], entanglement={"groups": 2}) == 6
