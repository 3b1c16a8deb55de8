import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from prefopt.data.section import DataSection, EvaluationSection

SOURCE = {"path": "rows.jsonl"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"sources": []}, "at least 1 item"),
        ({"sources": [SOURCE], "keep": "top_k"}, "needs data.top_k"),
        ({"sources": [SOURCE], "top_k": 2}, "no effect with keep: all"),
        ({"sources": [{**SOURCE, "weight": 0}]}, "greater than 0"),
        ({"sources": [SOURCE], "max_len": 3}, "Extra inputs"),
        ({"sources": [SOURCE], "evaluation": {}}, "exactly one of"),
        (
            {"sources": [SOURCE], "evaluation": {"sources": [{**SOURCE, "weight": 2}]}},
            "no effect on evaluation",
        ),
    ],
)
def test_a_section_that_cannot_work_is_refused(values, problem):
    with pytest.raises(ValidationError, match=problem):
        DataSection.model_validate(values)


def test_evaluation_is_held_out_in_one_way_only():
    with pytest.raises(ValidationError, match=r"got fraction and num_groups"):
        EvaluationSection(fraction=0.1, num_groups=3)


def test_the_cache_folder_comes_from_the_section_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "environment"))
    plain = DataSection.model_validate({"sources": [SOURCE]})
    named = DataSection.model_validate({"sources": [SOURCE], "cache_dir": tmp_path / "own"})

    assert plain.cache_folder() == tmp_path / "environment"
    assert named.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PREFOPT_CACHE")
    assert plain.cache_folder() == Path.home() / ".cache" / "prefopt"


def test_every_key_of_the_section_is_explained():
    for model in (DataSection, EvaluationSection):
        assert all(field.description for field in model.model_fields.values())


def test_importing_the_section_loads_no_heavy_library():
    script = (
        "import sys, prefopt.data.section; "
        "print([n for n in ('torch', 'transformers', 'datasets', 'numpy') if n in sys.modules])"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert result.stdout.decode().strip() == "[]"
