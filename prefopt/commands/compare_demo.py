"""`prefopt compare --demo`: nine objectives on the embedded task, three seeds each, two judges."""

from pathlib import Path
from typing import Any

import yaml

from prefopt.commands.demo import sft_recipe, train_in_own_process
from prefopt.comparison.section import ComparisonSection
from prefopt.demo.model import save_start
from prefopt.demo.task import generate, held_out_prompts, write_data, write_jsonl
from prefopt.errors import check_section
from prefopt.train.run_folder import MODEL_FILES

_NUM_RECORDS = 4000
_NUM_VALIDATION, _NUM_TEST = 128, 256
_SEED_OF_DATA = 0

# Two values of what moves a policy most, for each; learning rate and steps are those of all.
_METHODS: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "dpo": ({"name": "dpo"}, {"objective.beta": [0.1, 0.5]}),
    "ipo": ({"name": "ipo"}, {"objective.tau": [0.1, 0.5]}),
    "cringe": ({"name": "pairwise_cringe", "temperature": 10.0}, {"objective.alpha": [0.1, 0.3]}),
    "lipo": ({"name": "lipo"}, {"objective.beta": [0.05, 0.2]}),
    "infonca": ({"name": "infonca", "alpha": 0.2}, {"objective.beta": [0.1, 0.5]}),
    "nca": ({"name": "nca", "alpha": 0.2}, {"objective.beta": [0.1, 0.5]}),
    "dr_dpo": ({"name": "dr_dpo"}, {"objective.beta": [0.1, 0.5]}),
    "mmpo": ({"name": "mmpo", "gamma": 5.0}, {"objective.beta": [0.1, 0.5]}),
    "simpo": ({"name": "simpo"}, {"objective.beta": [2.0, 10.0]}),
}


def demo_comparison(output: Path) -> ComparisonSection:
    """Make data, the start that all methods share, and the comparison file.

    What is there stays, so that a comparison that was stopped goes on.

    Args:
        output: folder for everything.

    Raises:
        UserError: if training the start fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    task, start = output / "task", output / "task" / "sft"
    if not any((start / name).is_file() for name in MODEL_FILES):
        save_start(task / "start", _SEED_OF_DATA)
        write_data(generate(_NUM_RECORDS, _SEED_OF_DATA), task)
        # One draw, so that no prompt is in both.
        prompts = list(dict.fromkeys(held_out_prompts(2 * (_NUM_VALIDATION + _NUM_TEST), seed=1)))
        prompts = prompts[: _NUM_VALIDATION + _NUM_TEST]
        assert len(prompts) == _NUM_VALIDATION + _NUM_TEST
        for name, some in (
            ("validation", prompts[:_NUM_VALIDATION]),
            ("test", prompts[_NUM_VALIDATION:]),
        ):
            write_jsonl(({"prompt": prompt} for prompt in some), task / f"{name}.jsonl")
        train_in_own_process(task, "sft", sft_recipe(task, _SEED_OF_DATA))
    base = task / "base.yaml"
    base.write_text(yaml.safe_dump(_base(task), sort_keys=False), encoding="utf-8")
    values = _comparison(output, base)
    return check_section(ComparisonSection, values, "")


def _base(task: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(task / "sft")},
        "data": {
            "sources": [{"path": str(task / "train.jsonl")}],
            "evaluation": {"num_groups": 128},
            "max_length": 32,
            "cache_dir": str(task / "cache"),
        },
        "objective": {"name": "dpo"},
        "training": {
            "output_dir": str(task / "unused"),
            "groups_per_step": 32,
            "max_steps": 100,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 5,
            "logging_steps": 10,
            "save_strategy": "no",
            "seed": 0,
        },
    }


def _comparison(output: Path, base: Path) -> dict[str, Any]:
    gold = {
        "backend": "rule",
        "function": "prefopt.demo.task:gold_score",
        "temperature": 0.1,
        "levels": [0.0, 1.0],
    }
    # Prefers what stands first, what is longer, and now and then anything.
    biased = {**gold, "slot_bias": 0.5, "length_bias": 1.0, "length_scale": 1.0, "noise": 0.5}
    return {
        "title": "Nine objectives on the embedded task",
        "output_dir": str(output),
        "base": str(base),
        "methods": {
            name: {"sections": {"objective": objective}, "grid": grid}
            for name, (objective, grid) in _METHODS.items()
        },
        "seeds": [0, 1, 2],
        "prompts": {
            "test": str(output / "task" / "test.jsonl"),
            "validation": str(output / "task" / "validation.jsonl"),
        },
        "generation": {"max_new_tokens": 8, "temperature": 1.0, "batch_size": 256},
        "judges": {"gold": gold, "biased": biased},
        "judges_score": True,
        "kl": {"num_samples": 4, "max_prompts": 128, "max_new_tokens": 8},
        "entanglement": {"groups": 32},
        "num_jobs": 2,
    }
