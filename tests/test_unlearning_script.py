import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "unlearn_tofu.py"
PLACES = ["Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Perth", "Turin", "Kyoto"]
THINGS = ["poems", "plays", "essays", "maps", "novels", "letters", "songs", "fables"]


def write_questions(path: Path, num: int, *, seed: int) -> None:
    """Rows in TOFU's columns, of authors that do not exist either."""
    generator = random.Random(seed)
    lines = []
    for _ in range(num):
        name = "".join(generator.choice("aeioumnrst") for _ in range(6)).title()
        place, thing, other = (generator.choice(each) for each in (PLACES, THINGS, THINGS))
        row = {
            "question": f"What is known of {name}?",
            "answer": f"{name} was born in {place} and wrote {thing} and {other} there.",
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_the_script_forgets_and_npo_with_a_retain_term_keeps_more_than_gradient_ascent(
    tmp_path: Path,
):
    write_questions(tmp_path / "forget01.json", 16, seed=0)
    write_questions(tmp_path / "retain99.json", 64, seed=1)

    command = [sys.executable, SCRIPT, "--tofu", tmp_path, "--output", tmp_path / "out", "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads((tmp_path / "out" / "unlearning.json").read_text(encoding="utf-8"))
    ends = {name: run["curve"][-1] for name, run in results["runs"].items()}
    assert results["start"]["forget"] > 0.8
    for name in ("grad_ascent", "npo_alone", "npo_nll", "npo_kl", "simnpo_nll"):
        assert ends[name]["forget"] < results["start"]["forget"] - 0.1, name
    assert ends["npo_nll"]["held_out"] > ends["grad_ascent"]["held_out"]
    assert ends["npo_nll"]["stream"] > ends["grad_ascent"]["stream"]
    assert (tmp_path / "out" / "unlearning.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_folder_without_the_files_is_one_line(tmp_path: Path):
    command = [sys.executable, SCRIPT, "--tofu", tmp_path, "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: no file")
