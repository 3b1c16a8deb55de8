"""Trains the embedded task with every objective's tiny recipe and tabulates what that changed.

Usage: python scripts/measure_objectives.py [NAME ...], from anywhere; names choose objectives, the
others keep their numbers. Writes docs/measured-objectives.json, and from it the .md beside it.
`prefopt demo` makes the data and the start, once: delete runs/measure to make them anew.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from prefopt.commands import demo
from prefopt.commands.train import train
from prefopt.config import load_recipe
from prefopt.demo.model import gold_of_samples
from prefopt.demo.task import generate, held_out_prompts, right_response
from prefopt.objectives import registered

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "measure"
TABLE = ROOT / "docs" / "measured-objectives.md"
SEED = 0
# Those of `prefopt demo`, so that its numbers are found in the table.
NUM_PROMPTS, SAMPLING_SEED = 256, 123
NUM_RECORDS, SEED_OF_RECORDS = 128, 1
ENOUGH = 0.1

Measured = dict[str, float]

# Why an objective gains less than ENOUGH, or from where else it starts.
NOTES = {
    "grad_ascent": (
        "gains less than 0.1: it only makes undesired answers unlikely, without end and whatever "
        "becomes likely instead, and soon the right answers with which they share letters"
    ),
    "nll": "from random weights, in 400 steps: this is the imitation that all others start from",
}

_HEADS: tuple[str, ...] = ("objective", "parameters", "data", "learning rate", "steps x groups")
_HEADS += ("gold, sampled", "gold, greedy", "right", "best", "worst", "note")

INTRODUCTION = """\
`python scripts/measure_objectives.py` wrote this page, with seed {seed} of data and runs.

# What each objective does to the embedded task

Each row is one run of `recipes/NAME/tiny.yaml` on the task of `prefopt demo`, from the model that
has imitated all responses. *Gold* is the mean gold score of one answer to each of {prompts} prompts
whose letters no training prompt has: *sampled* at temperature 1, and *greedy*. *Right*, *best* and
*worst* are mean changes of summed log-probs, in nats: of the right answer to these prompts, and of
the best and the worst scored response of {records} lists of another seed.
One seed, and settings chosen by sampled gold: a difference of 0.03 means little. Most have the
schedule of `dpo`, so that they compare. In trials outside this table 5e-4 gave many of those that
lower both log-probs up to 0.13 more sampled gold, with mostly a still lower log-prob of the best.

What is seen: nearly all learn the rule, which imitation does not. Most of those without a fixed
target or a term that imitates push the worst responses down by about 15 to 23 nats and take the
best along, whose slips they share; the right answer, which has none, still gains with nearly all.
Most others lower the worst less and raise the best, and gain no less gold.
"""


def main(names: Sequence[str]) -> int:
    """Measure the named objectives, or all; 1 if one gains too little and no note says why."""
    unknown = set(names) - set(registered())
    if unknown:
        sys.exit(f"error: no objective {', '.join(sorted(unknown))}; see `prefopt objectives`.")
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    if not (FOLDER / "demo" / "results.json").is_file():
        demo.run(FOLDER / "demo", SEED)
    starts: dict[str, Measured] = {}
    for name in names or registered():
        print(f"== {name}", flush=True)
        _keep(name, measure(name, starts))
    rows = _rows()
    _write(rows)
    poor = [name for name, row in rows.items() if _gain(row) < ENOUGH and name not in NOTES]
    print(f"{TABLE}: {len(rows)} objectives, seed {SEED}")
    if poor:
        print(f"They gain less than {ENOUGH}, and no note says why: {', '.join(poor)}")
    return 1 if poor else 0


def measure(
    name: str, starts: dict[str, Measured], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """What the recipe says and what it changed.

    Args:
        name: the objective, whose tiny recipe is trained.
        starts: numbers of the models that recipes start from; those that lack are added.
        overrides: of the recipe.
    """
    path = ROOT / "recipes" / name / "tiny.yaml"
    written = load_recipe(path, overrides)
    here = [f"model.path={_here(written.model.path)}", f"data.cache_dir={FOLDER / 'cache'}"]
    here += [f"training.output_dir={FOLDER / name}", f"training.seed={SEED}"]
    for index, source in enumerate(written.data.sources):
        here.append(f"data.sources.{index}.path={_here(source.path)}")
    recipe = load_recipe(path, [*overrides, *here])
    train(recipe, overwrite=True)
    start = recipe.model.path
    if start not in starts:
        starts[start] = numbers(Path(start))
    parameters = yaml.safe_load(path.read_text(encoding="utf-8"))["objective"]
    parameters.pop("name")
    return {
        "start": written.model.path,
        "data": [Path(source.path).name for source in written.data.sources],
        "keep": written.data.keep,
        "parameters": parameters,
        "learning_rate": recipe.training.arguments["learning_rate"],
        "max_steps": recipe.training.arguments["max_steps"],
        "groups": [recipe.training.groups_of(role) for role in recipe.data.roles or [""]],
        "before": starts[start],
        "after": numbers(FOLDER / name),
    }


def numbers(folder: Path) -> Measured:
    """Gold scores and mean summed log-probs of a saved model, by plain transformers."""
    model = LlamaForCausalLM.from_pretrained(folder)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = held_out_prompts(NUM_PROMPTS, seed=0)
    sampled = gold_of_samples(model, tokenizer, prompts, sample=True, seed=SAMPLING_SEED)
    greedy = gold_of_samples(model, tokenizer, prompts, sample=False)
    right = [prompt + right_response(prompt) for prompt in prompts]
    best: list[str] = []
    worst: list[str] = []
    for row in generate(NUM_RECORDS, SEED_OF_RECORDS):
        for texts, extreme in ((best, max), (worst, min)):
            index = row["scores"].index(extreme(row["scores"]))
            texts.append(row["prompt"] + row["responses"][index])
    return {
        "sampled": statistics.fmean(sampled),
        "greedy": statistics.fmean(greedy),
        "right": _mean_logp(model, tokenizer, right),
        "best": _mean_logp(model, tokenizer, best),
        "worst": _mean_logp(model, tokenizer, worst),
    }


def _here(path: str) -> str:
    """A path of the recipe, below the folder of the measurements."""
    assert path.startswith("demo/"), path
    return str(FOLDER / path)


@torch.no_grad()
def _mean_logp(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> float:
    """Mean log-prob of the last six letters with end-of-sequence, summed over each text."""
    # All prompts have seven characters and all responses six, so nothing is padded.
    ids = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt").input_ids
    assert ids.shape[1] == 7 + 6 + 1
    logps = model(input_ids=ids).logits[:, 6:-1].log_softmax(dim=2)
    return float(logps.gather(2, ids[:, 7:, None]).sum(dim=(1, 2)).mean())


def _rows() -> dict[str, Any]:
    path = TABLE.with_suffix(".json")
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: rows[name] for name in registered() if name in rows}


def _keep(name: str, row: Mapping[str, Any]) -> None:
    """Store a row at once, so that a run that is cut off has its use."""
    rows = {**_rows(), name: row}
    text = json.dumps(rows, indent=1)
    TABLE.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def _gain(row: Mapping[str, Any], of: str = "sampled") -> float:
    change: float = row["after"][of] - row["before"][of]
    return change


def _write(rows: Mapping[str, Any]) -> None:
    """The page: what is measured, what is seen, and the table."""
    counts = {"prompts": NUM_PROMPTS, "records": NUM_RECORDS, "seed": SEED}
    table = [_HEADS, ("---",) * len(_HEADS), *(_cells(name, row) for name, row in rows.items())]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    page = "\n".join([INTRODUCTION.format(**counts), "", _seen(rows), "", *lines])
    TABLE.write_text(page + "\n", encoding="utf-8")


def _seen(rows: Mapping[str, Any]) -> str:
    """What the log-probs say, counted, so that it stays true when the numbers change."""
    rows = {name: row for name, row in rows.items() if row["start"] == "demo/sft"}
    groups = {
        "raise the best responses and lower the worst": (True, False),
        "lower both": (False, False),
        "raise both": (True, True),
    }
    sentences = []
    for what, signs in groups.items():
        names = [
            f"`{name}`"
            for name, row in rows.items()
            if (_gain(row, "best") > 0, _gain(row, "worst") > 0) == signs
        ]
        if names:
            sentences.append(f"{len(names)} of {len(rows)} {what}: {', '.join(names)}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    gold = [
        f"{row['before'][of]:.3f} -> {row['after'][of]:.3f} ({_gain(row, of):+.3f})"
        for of in ("sampled", "greedy")
    ]
    logps = [f"{_gain(row, of):+.1f}" for of in ("right", "best", "worst")]
    schedule = f"{row['max_steps']} x {' + '.join(str(groups) for groups in row['groups'])}"
    rate = f"{row['learning_rate']:.0e}".replace("e-0", "e-")
    data = ", ".join(row["data"]) + ("" if row["keep"] == "all" else f", {row['keep']}")
    left = (f"`{name}`", _shown(row["parameters"]), data, rate, schedule)
    return (*left, *gold, *logps, NOTES.get(name, ""))


def _shown(parameters: Mapping[str, Any]) -> str:
    """Parameters as the recipe has them."""
    parts = []
    for key, value in parameters.items():
        if isinstance(value, list):
            parts.append(" + ".join(f"({_shown(term)})" for term in value))
        else:
            parts.append(
                str(value) if key == "name" else f"{key} {'null' if value is None else value}"
            )
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
