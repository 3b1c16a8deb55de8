"""Trains the embedded task on near pairs and shows what becomes of chosen responses and of gold.

Usage: python scripts/measure_displacement.py, from anywhere. Writes docs/displacement.json, .png
and .md. `prefopt demo` makes the data and the start, once: delete runs/displacement to make them
anew. Every run has the diagnostics of a recipe; gold is scored beside them.

Pairs are the two responses of a prompt that differ in the fewest letters and not in score: so
alike, a step on one of them moves the other too. The learning rate is too high on purpose.
"""

import json
import sys
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from prefopt.commands import demo, diagnose
from prefopt.commands import train as command
from prefopt.config import Recipe
from prefopt.demo.model import build_tokenizer, gold_of_samples
from prefopt.demo.task import held_out_prompts, write_jsonl
from prefopt.train.checkpoint import METRICS_FILE

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "displacement"
PAGE = ROOT / "docs" / "displacement.md"
SEED, NUM_PROMPTS, SAMPLING_SEEDS = 0, 256, range(123, 127)
EVERY, STEPS, LEARNING_RATE = 10, 300, 1e-3

WINDOWS = ((20, 110), (120, 200), (210, 300))
"""Gold of a single step is noise of some 0.05."""

RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"name": "dpo", "beta": 0.1}},
    "dpo, normalised": {"objective": {"name": "dpo", "beta": 0.1}, "normalise": True},
    "dpo + nll": {
        "objective": {
            "name": "weighted_sum",
            "terms": [{"name": "dpo", "beta": 0.1}, {"name": "nll", "of": "preferred"}],
        }
    },
    "nca": {"objective": {"name": "nca", "beta": 0.1}},
    "simpo": {"objective": {"name": "simpo", "beta": 2.0, "gamma": 1.0}},
    "ipo": {"objective": {"name": "ipo", "tau": 0.1, "length_normalized": True}},
}
CURVES = {
    "gold": "gold score, sampled",
    "drift/chosen": "chosen: log-prob against the start, nats",
    "drift/rejected": "rejected: log-prob against the start, nats",
    "cosine": "cosine of the two gradients",
    "chosen_condition_broken": "share of pairs whose own step lowers the chosen",
    "drift/share_both_fall": "share of held-out pairs of which both have fallen",
}

INTRODUCTION = """\
`python scripts/measure_displacement.py` wrote this page, its numbers and its plot: one seed,
{steps} steps of 32 pairs, learning rate {rate}, AdamW.

# Displacement on near pairs of the embedded task

The pairs are the two responses of a prompt, of those in `prefopt demo`, that differ in the fewest
letters and not in score. Numbers of the diagnostics are those of `diagnostics: {{every: {every},
groups: 32}}`; drifts are of 32 held-out pairs, in nats. Gold is the mean gold score of {samples}
sampled answers to each of {prompts} prompts whose letters no training prompt has; it starts at
{start:.3f}. *Lowered by a step* is what `prefopt diagnose` predicts before the first step: the
share of pairs whose chosen response a step on 32 pairs lowers, and in brackets a step on the pair
alone.

![curves](displacement.png)

"""


class Gold(TrainerCallback):
    """Scores answers of the policy while it is trained."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}
        self._prompts, self._tokenizer = held_out_prompts(NUM_PROMPTS, seed=0), build_tokenizer()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At every step that is measured."""
        if state.global_step == 1 or state.global_step % EVERY == 0:
            model, prompts = kwargs["model"], self._prompts
            scores = [
                score
                for seed in SAMPLING_SEEDS
                for score in gold_of_samples(
                    model, self._tokenizer, prompts, sample=True, seed=seed
                )
            ]
            self.found[state.global_step] = sum(scores) / len(scores)


def main() -> None:
    """Train all, and write the page."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    if not (FOLDER / "demo" / "results.json").is_file():
        demo.run(FOLDER / "demo", SEED)
    _write_near_pairs()
    found, predicted = {}, {}
    for name, settings in RUNS.items():
        print(f"== {name}", flush=True)
        predicted[name] = predict(name, settings)
        found[name] = measure(name, settings)
    start = json.loads((FOLDER / "demo" / "results.json").read_text())["sft"]["sampled"]
    numbers = {"before": predicted, "while": found}
    PAGE.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    _plot(found)
    _write(found, predicted, start)


def measure(name: str, settings: dict[str, Any]) -> list[dict[str, float]]:
    """Numbers of one run, a row for each measured step."""
    folder = FOLDER / name.replace(" ", "").replace(",", "-").replace("+", "-")
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(FOLDER / "demo" / "sft")},
            "data": {
                "sources": [{"path": str(FOLDER / "near.jsonl")}],
                "evaluation": {"num_groups": 128},
                "max_length": 32,
                "cache_dir": str(FOLDER / "cache"),
            },
            "objective": settings["objective"],
            "diagnostics": {"every": EVERY, "groups": 32},
            "training": {
                "output_dir": str(folder),
                "groups_per_step": 32,
                "max_steps": STEPS,
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 5,
                "eval_strategy": "no",
                "save_strategy": "no",
                "logging_steps": EVERY,
                "seed": SEED,
                "normalise_gradients": settings.get("normalise", False),
            },
        }
    )
    gold, usual = Gold(), command._callbacks
    with patch.object(command, "_callbacks", lambda recipe: [*usual(recipe), gold]):
        command.train(recipe, overwrite=True)
    rows = []
    for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        logged = json.loads(line)
        if "diagnostics/seconds" in logged:
            wanted = [*CURVES, "predicted/both_fall", "ranking_accuracy", "sign_agreement"]
            numbers = {key: logged.get(f"diagnostics/{key}") for key in wanted if key != "gold"}
            rows.append(
                {"step": logged["step"], "gold": gold.found[logged["step"]]}
                | {key: round(value, 4) for key, value in numbers.items() if value is not None}
            )
    return rows


def _write_near_pairs() -> None:
    lines = (FOLDER / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    write_jsonl((_nearest(json.loads(line)) for line in lines), FOLDER / "near.jsonl")


def _nearest(row: dict[str, Any]) -> dict[str, Any]:
    responses, scores = row["responses"], row["scores"]
    _, better, worse = min(
        (sum(a != b for a, b in zip(responses[i], responses[j], strict=True)), i, j)
        for i, j in permutations(range(len(responses)), 2)
        if scores[i] > scores[j]
    )
    pair = {"chosen": responses[better], "rejected": responses[worse]}
    return {"id": row["id"], "prompt": row["prompt"], **pair}


def _plot(found: dict[str, list[dict[str, float]]]) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for (key, title), axis in zip(CURVES.items(), axes.flat, strict=True):
        for name, rows in found.items():
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(PAGE.with_suffix(".png"), dpi=110)
    plt.close(figure)


def predict(name: str, settings: dict[str, Any]) -> dict[str, float]:
    """What a step from the start does to pairs, before any is taken."""
    output = FOLDER / "predicted" / name
    diagnose.run(
        str(FOLDER / "demo" / "sft"),
        [
            f"objective={json.dumps(settings['objective'])}",
            "data.max_length=32",
            f"data.cache_dir={FOLDER / 'cache'}",
            f"training.normalise_gradients={json.dumps(settings.get('normalise', False))}",
        ],
        data=[str(FOLDER / "near.jsonl")],
        objective=None,
        # The folder is that of a run; here it is where others start.
        reference=str(FOLDER / "demo" / "sft"),
        num_groups=256,
        num_token_maps=0,
        num_samples=0,
        is_verified=False,
        seed=SEED,
        output=output,
    )
    step: dict[str, float] = json.loads((output / diagnose.NUMBERS_FILE).read_text())["step"]
    return step


def _write(
    found: dict[str, list[dict[str, float]]], predicted: dict[str, dict[str, float]], start: float
) -> None:
    introduction = INTRODUCTION.format(
        steps=STEPS,
        rate=LEARNING_RATE,
        every=EVERY,
        prompts=NUM_PROMPTS,
        samples=len(SAMPLING_SEEDS),
        start=start,
    )
    heads = ["run", *(f"gold, steps {first} to {last}" for first, last in WINDOWS)]
    heads += ["chosen, end", "rejected, end"]
    heads += ["cosine, mean", "lowered by a step"]
    table = [heads, ["---"] * len(heads)]
    for name, rows in found.items():
        step = predicted[name]
        last = rows[-1]
        table.append(
            [
                name,
                *(_gold(rows, *window) for window in WINDOWS),
                f"{last['drift/chosen']:+.1f}",
                f"{last['drift/rejected']:+.1f}",
                f"{_mean(rows, 'cosine'):.2f}",
                f"{step['share_chosen_falls']:.0%} ({step['share_chosen_falls_by_its_own']:.0%})",
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in table]
    kept = ""
    if PAGE.exists():
        # What is said of the numbers is written by hand, below them.
        _, heading, rest = PAGE.read_text(encoding="utf-8").partition("\n## What is seen")
        kept = heading + rest
    PAGE.write_text(introduction + "\n".join(lines) + "\n" + kept.rstrip() + "\n", encoding="utf-8")


def _gold(rows: list[dict[str, float]], first: int, last: int) -> str:
    """Mean over some steps, and the least and the most."""
    gold = [row["gold"] for row in rows if first <= row["step"] <= last]
    return f"{sum(gold) / len(gold):.3f} ({min(gold):.2f} to {max(gold):.2f})"


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


if __name__ == "__main__":
    sys.exit(main())
