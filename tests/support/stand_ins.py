"""What the commands of the docs find in the user's folder: small files under the same names."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from prefopt.commands import generate
from prefopt.evaluation.judge.doctor_pairs import PAIRS
from tests.support.judge_server import Said, chat
from tests.support.launch import CONFIGURATIONS
from tests.support.runs import run
from tests.support.tiny import save_tiny_model, write_jsonl, write_pairs
from tests.support.tofu import write_tofu

_BETWEEN = "\n---\n"
_GOOD = {good for _, good, _ in PAIRS}
# What MT-Bench's eight prompts judge, with nothing around it.
_PAIR, _PAIR_LAST = (f"{{answer_a{turn}}}{_BETWEEN}{{answer_b{turn}}}" for turn in ("", "_2"))
_TEMPLATES = {
    "pair-v2": _PAIR,
    "pair-math-v1": _PAIR,
    "pair-v2-multi-turn": _PAIR_LAST,
    "pair-math-v1-multi-turn": _PAIR_LAST,
    "single-v1": "{answer}",
    "single-math-v1": "{answer}",
    "single-v1-multi-turn": "{answer_2}",
    "single-math-v1-multi-turn": "{answer_2}",
}


def write_user_folder(folder: Path) -> None:
    """A folder with models, runs, data, prompts and judge files as the docs name them.

    Everything that a recipe or a run remembers is relative, so the folder can be copied.
    """
    for name in ("Qwen/Qwen3-0.6B", "my-model", "my-start", "path/to/start"):
        save_tiny_model(folder / name, seed=len(name))
    _write_runs(folder)
    write_pairs(folder / "preferences.jsonl", 40)
    write_pairs(folder / "held_out.jsonl", 12, seed=1)
    write_tofu(folder / "path" / "to")
    for name, rows in (("prompts", 4), ("validation", 3), ("test", 3)):
        prompts = [{"prompt": f"{name} {number}?"} for number in range(rows)]
        write_jsonl(folder / f"{name}.jsonl", prompts)
    _write_suites(folder)
    _write_judge(folder)
    own = folder / "my" / "own.yaml"
    own.parent.mkdir()
    shutil.copy(CONFIGURATIONS / "single.yaml", own)


def _write_runs(folder: Path) -> None:
    """Runs of one step each; the names of others in the docs are copies of the first."""
    shutil.copytree(folder / "my-start", folder / "model")
    write_pairs(folder / "pairs.jsonl", 12)
    once = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    held_out = {"evaluation": {"num_groups": 4}}
    for name, objective in (("dpo", {"name": "dpo"}), ("simpo", {"name": "simpo"})):
        run(folder, f"runs/{name}", data=held_out, objective=objective, training=once)
    (folder / "runs/dpo/checkpoint-1").rename(folder / "runs/dpo/checkpoint-200")
    for name in ("ipo", "npo", "retain90"):
        shutil.copytree(folder / "runs" / "dpo", folder / "runs" / name)


def _write_suites(folder: Path) -> None:
    """MT-Bench's and AlpacaEval's files, and answers of three systems."""
    questions = [
        {"question_id": 81 + number, "category": category, "turns": [f"Say {number}.", "Again."]}
        for number, category in enumerate(("writing", "humanities", "stem"))
    ]
    write_jsonl(folder / "question.jsonl", questions)
    rows = [
        {"dataset": "helpful_base", "instruction": f"Say {word}.", "output": word, "generator": "r"}
        for word in ("one", "two", "three", "four")
    ]
    (folder / "alpaca_reference.json").write_text(json.dumps(rows), encoding="utf-8")
    for name, model, prompts in (
        ("a", "my-model", "question.jsonl"),
        ("b", "my-start", "question.jsonl"),
        ("base", "my-start", "alpaca_reference.json"),
    ):
        generate.run(
            str(folder / model),
            ["max_new_tokens=8"],
            prompts=str(folder / prompts),
            output=folder / "generations" / f"{name}.jsonl",
            name=name,
            endpoint=None,
        )


def _write_judge(folder: Path) -> None:
    rows = [
        {"name": name, "system_prompt": "Judge.", "prompt_template": template}
        for name, template in _TEMPLATES.items()
    ]
    write_jsonl(folder / "judge_prompts.jsonl", rows)


def comparison() -> dict[str, Any]:
    """A comparison file that is over in half a minute."""
    return {
        "output_dir": "runs/compare",
        "base": "recipe.yaml",
        "methods": {"dpo": {}, "simpo": {"sections": {"objective": {"name": "simpo"}}}},
        "prompts": {"test": "test.jsonl"},
        "generation": {"max_new_tokens": 8, "temperature": 1.0},
        "judges": {"rule": {"backend": "rule", "function": "prefopt.demo.task:gold_score"}},
        "kl": {"max_new_tokens": 8},
        "num_jobs": 2,
    }


def write_yaml(path: Path, values: Any) -> None:
    """A YAML file, its keys in the order given."""
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def judge_or_answer(body: dict[str, Any]) -> Said:
    """What the server of the docs' judge and endpoint says: the good or longer answer is better."""
    *before, asked = [message["content"] for message in body["messages"]]
    if before != ["Judge."]:
        return chat("An answer.")
    first, found, second = asked.partition(_BETWEEN)
    if not found:
        return _verdict("8" if asked in _GOOD else "3")
    ranks = [(text in _GOOD, len(text)) for text in (first, second)]
    return _verdict("C" if ranks[0] == ranks[1] else "A" if ranks[0] > ranks[1] else "B")


def _verdict(label: str) -> Said:
    others = [each for each in ("A", "B", "C") if each != label] if label.isalpha() else []
    place = {label: 0.9, **dict.fromkeys(others, 0.05)}
    return chat(f"[[{label}]]", tokens=[("[[", {"x": 1.0}), (label, place), ("]]", {"x": 1.0})])
