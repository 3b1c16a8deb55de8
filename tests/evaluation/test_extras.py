import sys

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.extras import need
from prefopt.evaluation.judge.build import build_judge
from prefopt.evaluation.judge.section import read_section

ENDPOINT = "prefopt.evaluation.judge.endpoint"


def test_a_missing_package_is_one_line_with_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "openai"]:
        monkeypatch.delitem(sys.modules, name)
    for name in (ENDPOINT, "prefopt.evaluation.judge.openai_chat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    # What Python itself does with a name that stands for nothing.
    monkeypatch.setitem(sys.modules, "openai", None)

    with pytest.raises(UserError) as caught:
        build_judge(read_section({"backend": "openai_chat", "model": "m"}))

    assert str(caught.value) == (
        "this needs the package openai. Install it: pip install 'prefopt[judge]'"
    )


def test_another_missing_module_is_no_matter_of_extras():
    with pytest.raises(ModuleNotFoundError):
        need("prefopt.evaluation.no_such_module", "judge")
