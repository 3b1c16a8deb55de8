import subprocess
import sys

import pytest

from prefopt.evaluation.extras import missing_package

# What Python itself does with a name that stands for nothing.
CODE = """
import sys
sys.modules[{package!r}] = None
from prefopt.cli import main
main({words!r})
"""


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("scipy", "stats", ["report", "."]),
        ("statsmodels", "stats", ["compare", "absent.yaml"]),
        ("scipy", "stats", ["formats", "table", "alpaca", "--prompts", "p", "--judgments", "j"]),
        ("rouge_score", "unlearn", ["evaluate", "tofu", "run", "--data", "."]),
        ("openai", "judge", ["judge", "doctor", "judge.yaml"]),
    ],
)
def test_a_missing_package_is_one_line_with_its_extra(tmp_path, package, extra, words):
    (tmp_path / "judge.yaml").write_text("{backend: openai_chat, model: m}", encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-c", CODE.format(package=package, words=words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    line = f"error: this needs the package {package}. Install it: pip install 'prefopt[{extra}]'"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_another_missing_module_is_no_matter_of_extras():
    assert missing_package(ModuleNotFoundError("no such", name="prefopt.nothing")) is None
