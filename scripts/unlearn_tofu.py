"""Unlearning on TOFU's files: a small model memorises some authors, then forgets two of them.

Usage: python scripts/unlearn_tofu.py --tofu FOLDER [--output runs/unlearning] [--results docs]
[--small] [--seed 0]. The folder holds TOFU's forget01.json and retain99.json as they are. Writes
unlearning.json and unlearning.png into the results folder (that of the runs by default), and prints
the table of docs/unlearning.md. --small is a matter of seconds and shows only that all works.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from prefopt.commands.train import train
from prefopt.config import Recipe

Row = dict[str, str]
Point = dict[str, float]
Curve = list[Point]

FORGET, RETAIN = "forget01.json", "retain99.json"
LEVELS = (0.5, 0.2, 0.1)
MEMORISED = 0.8


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the experiment is."""

    forget_rows: int = 40
    """Of forget01, from its start: at 40 the file is read where it is."""
    stream_rows: int = 80
    """Of retain99, from its start: memorised, and what the retain terms train on."""
    held_out_rows: int = 80
    """The next of them: memorised, and never seen again."""
    unseen_rows: int = 40
    """The last of retain99: never trained on; how likely an answer is that nobody memorised."""
    vocabulary: int = 2048
    width: int = 128
    layers: int = 4
    memorise_steps: int = 200
    memorise_rate: float = 3e-3
    steps: int = 80
    every: int = 2
    rate: float = 1e-4
    groups: int = 20


SMALL = Scale(
    forget_rows=16,
    stream_rows=24,
    held_out_rows=24,
    unseen_rows=16,
    vocabulary=512,
    width=64,
    layers=2,
    memorise_steps=120,
    steps=16,
    every=4,
    rate=3e-4,
    groups=8,
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to forget, and how its curve is drawn."""

    label: str
    objective: dict[str, Any]
    color: str
    style: str = "-"
    marker: str = "o"
    retains: bool = False
    """Whether it has a retain term, and so reads the retain stream."""


def methods(tokens: float) -> dict[str, Method]:
    """All of them, with terms weighed alike.

    Args:
        tokens: of a retained answer, on average. Where the forget term is a sum over tokens and
            the retain term a mean, a retain weight of so many makes a token weigh as much in both.
    """
    summed = {"reduction": "sequence_sum"}
    # Okabe and Ito's palette; a retain term is a full line, none a broken one.
    return {
        "grad_ascent": Method(
            label="gradient ascent",
            objective={"name": "grad_ascent", **summed},
            color="#D55E00",
            style="--",
        ),
        "npo_alone_beta_0.01": Method(
            label="NPO alone, beta 0.01",
            objective={"name": "npo", "beta": 0.01, "retain": "none"},
            color="#E69F00",
            style="--",
            marker="v",
        ),
        "npo_alone": Method(
            label="NPO alone, beta 0.1",
            objective={"name": "npo", "beta": 0.1, "retain": "none"},
            color="#56B4E9",
            style="--",
            marker="s",
        ),
        "grad_diff": Method(
            label="GradDiff",
            objective={"name": "grad_diff", "retain_weight": 1.0, **summed},
            color="#000000",
            marker="o",
            retains=True,
        ),
        "npo_nll": Method(
            label="NPO + NLL",
            objective={"name": "npo", "beta": 0.1, "retain": "nll", "retain_weight": tokens},
            color="#0072B2",
            marker="s",
            retains=True,
        ),
        "npo_kl": Method(
            label="NPO + KL",
            objective={"name": "npo", "beta": 0.1, "retain": "kl", "retain_weight": tokens},
            color="#009E73",
            marker="D",
            retains=True,
        ),
        "simnpo_nll": Method(
            label="SimNPO + NLL",
            objective={"name": "simnpo", "beta": 2.5, "retain": "nll", "retain_weight": 1.0},
            color="#CC79A7",
            marker="^",
            retains=True,
        ),
    }


def main(arguments: Sequence[str]) -> int:
    """Run the experiment; 1 if the model did not memorise what it should forget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tofu", type=Path, required=True, help="folder of TOFU's files")
    parser.add_argument("--output", type=Path, default=Path("runs/unlearning"))
    parser.add_argument("--results", type=Path, help="where numbers and plot go; --output if unset")
    parser.add_argument("--small", action="store_true", help="under a minute, to see that it works")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    # More threads gain little on so small a model, and would change the last bits.
    torch.set_num_threads(1)
    start = time.perf_counter()
    experiment = Experiment(given.tofu, given.output, SMALL if given.small else Scale(), given.seed)
    results = experiment.run()
    results["minutes"] = round((time.perf_counter() - start) / 60, 1)
    folder = given.results or given.output
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    (folder / "unlearning.json").write_text(text, encoding="utf-8")
    draw(results, folder / "unlearning.png")
    print(*table(results), sep="\n")
    print(f"numbers and plot in {folder}, {results['minutes']} minutes")
    start_point = results["start"]
    if min(start_point["forget"], start_point["held_out"]) < MEMORISED:
        print(f"The start is below {MEMORISED}: it did not memorise, so nothing can be concluded.")
        return 1
    return 0


class Experiment:
    """The files, the memorising run and the forgetting ones, below one folder."""

    def __init__(self, tofu: Path, output: Path, scale: Scale, seed: int) -> None:
        """Write the subsets; a file that is used whole stays where it is."""
        self.output, self.scale, self.seed = output, scale, seed
        output.mkdir(parents=True, exist_ok=True)
        forget, retain = read_rows(tofu / FORGET), read_rows(tofu / RETAIN)
        last = scale.stream_rows + scale.held_out_rows
        self.rows: dict[str, list[Row]] = {
            "forget": forget[: scale.forget_rows],
            "stream": retain[: scale.stream_rows],
            "held_out": retain[scale.stream_rows : last],
            "unseen": retain[max(last, len(retain) - scale.unseen_rows) :],
        }
        empty = [name for name, rows in self.rows.items() if not rows]
        if empty:
            sys.exit(f"error: {tofu} has too few rows, none is left for {', '.join(empty)}.")
        self.files = {name: self._subset(name) for name in ("forget", "stream", "held_out")}
        if len(forget) == len(self.rows["forget"]):
            self.files["forget"] = tofu / FORGET

    def run(self) -> dict[str, Any]:
        """Memorise, forget by every method, and measure all checkpoints."""
        memorised = self._memorise()
        tokenizer = AutoTokenizer.from_pretrained(memorised)
        start = self._measure(memorised, tokenizer)
        print("memorised:", {name: round(value, 3) for name, value in start.items()}, flush=True)
        lengths = [len(answer_ids(row, tokenizer)) for row in self.rows["stream"]]
        runs: dict[str, Any] = {}
        for name, method in methods(round(statistics.fmean(lengths), 1)).items():
            folder = self._forget(name, method, memorised)
            curve = [{"step": 0, **start}]
            for step in range(self.scale.every, self.scale.steps + 1, self.scale.every):
                checkpoint = folder / f"checkpoint-{step}"
                curve.append({"step": step, **self._measure(checkpoint, tokenizer)})
                # All of them would fill more than a gigabyte.
                shutil.rmtree(checkpoint)
            print(name, {key: round(value, 3) for key, value in curve[-1].items()}, flush=True)
            run = {"label": method.label, "objective": method.objective}
            runs[name] = {**run, "curve": [rounded(point) for point in curve]}
        return {
            "scale": asdict(self.scale),
            "seed": self.seed,
            "parameters": LlamaForCausalLM.from_pretrained(memorised).num_parameters(),
            "tokens_per_retained_answer": round(statistics.fmean(lengths), 1),
            "start": rounded(start),
            "runs": runs,
        }

    def _subset(self, name: str) -> Path:
        path = self.output / f"{name}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in self.rows[name]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _memorise(self) -> Path:
        """A model from random weights that knows the answers of forget, stream and held_out."""
        texts = [row[key] for rows in self.rows.values() for row in rows for key in row]
        tokenizer = build_tokenizer(texts, self.scale.vocabulary)
        save_start(self.output / "start", tokenizer, self.scale, self.seed)
        scale, folder = self.scale, self.output / "memorised"
        recipe = {
            "model": {"path": str(self.output / "start")},
            "data": self._data({"path": str(path)} for path in self.files.values()),
            "objective": {"name": "nll", "of": "all", "reduction": "token_mean"},
            "training": {
                "output_dir": str(folder),
                "groups_per_step": 32,
                "max_steps": scale.memorise_steps,
                "learning_rate": scale.memorise_rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 20,
                "save_strategy": "no",
                "logging_steps": 50,
                "seed": self.seed,
            },
        }
        train(Recipe.model_validate(recipe), overwrite=True)
        return folder

    def _forget(self, name: str, method: Method, memorised: Path) -> Path:
        """Train from the memorised model, a checkpoint every few steps."""
        scale, folder = self.scale, self.output / name
        sources = [{"path": str(self.files["forget"]), "role": "forget"}]
        if method.retains:
            sources.append({"path": str(self.files["stream"]), "role": "retain"})
        recipe = {
            "model": {"path": str(memorised)},
            "data": self._data(sources),
            "objective": method.objective,
            "training": {
                "output_dir": str(folder),
                "groups_per_step": scale.groups,
                "max_steps": scale.steps,
                "learning_rate": scale.rate,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 4,
                "save_strategy": "steps",
                "save_steps": scale.every,
                "save_only_model": True,
                "logging_steps": 10,
                "seed": self.seed,
            },
        }
        train(Recipe.model_validate(recipe), overwrite=True)
        return folder

    def _data(self, sources: Iterator[dict[str, str]] | list[dict[str, str]]) -> dict[str, Any]:
        return {
            "sources": list(sources),
            "max_length": 512,
            "cache_dir": str(self.output / "cache"),
        }

    def _measure(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Point:
        """Mean over answers of exp(mean log-prob of a token), and that log-prob where forgotten."""
        model = LlamaForCausalLM.from_pretrained(folder)
        model.eval()
        logps = {name: mean_logps(model, tokenizer, rows) for name, rows in self.rows.items()}
        point = {name: statistics.fmean(map(math.exp, values)) for name, values in logps.items()}
        return {**point, "forget_nats": statistics.fmean(logps["forget"])}


def read_rows(path: Path) -> list[Row]:
    """Questions and answers of one of TOFU's files, a row per line."""
    if not path.is_file():
        sys.exit(f"error: no file {path}. Give the folder of TOFU's files with --tofu.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def build_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt from the texts; it adds nothing and has no chat template."""
    special = ["<pad>", "<eos>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def save_start(folder: Path, tokenizer: PreTrainedTokenizerFast, scale: Scale, seed: int) -> None:
    """Write a Llama with random weights, and the tokenizer beside it."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scale.width,
        intermediate_size=2 * scale.width,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        # Llama's own 0.02 is for wider models and learns slowly here.
        initializer_range=0.06,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answer_ids(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What of a row is scored: the answer and the end of sequence."""
    ids: list[int] = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
    return [*ids, int(tokenizer.eos_token_id)]


@torch.no_grad()
def mean_logps(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> list[float]:
    """Mean log-prob of a token of each answer, shortest row first, by plain transformers."""
    device = model.device
    pairs = []
    for row in rows:
        prompt: list[int] = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
        pairs.append((prompt, answer_ids(row, tokenizer)))
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    means: list[float] = []
    for start in range(0, len(pairs), 20):
        batch = pairs[start : start + 20]
        ids = [torch.tensor(prompt + answer) for prompt, answer in batch]
        padded = torch.nn.utils.rnn.pad_sequence(
            ids, batch_first=True, padding_value=int(tokenizer.pad_token_id)
        ).to(device)
        # Padding stands behind the text, where causal attention never looks from the text.
        logps = model(input_ids=padded).logits[:, :-1].float().log_softmax(dim=2)
        token_logps = logps.gather(2, padded[:, 1:, None])[:, :, 0]
        for (prompt, answer), values in zip(batch, token_logps, strict=True):
            first = len(prompt) - 1
            means.append(float(values[first : first + len(answer)].mean()))
    return means


def crossing(curve: Curve, level: float, key: str = "held_out") -> tuple[float, float] | None:
    """Step and value of `key` where forget first falls to the level, linear between evaluations."""
    for before, after in pairwise(curve):
        if after["forget"] <= level < before["forget"]:
            share = (before["forget"] - level) / (before["forget"] - after["forget"])
            step = before["step"] + share * (after["step"] - before["step"])
            return step, before[key] + share * (after[key] - before[key])
    return None


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """Markdown: how likely retained answers are when forget falls to each level, and at the end."""
    headings = [f"held out at forget {level:g} (step)" for level in LEVELS]
    headings += ["end: forget", "end: held out", "end: stream", "end: nats"]
    yield f"| method | {' | '.join(headings)} |"
    yield "|---|" + "---|" * len(headings)
    for run in results["runs"].values():
        cells = []
        for level in LEVELS:
            found = crossing(run["curve"], level)
            cells.append("never" if found is None else f"{found[1]:.2f} ({found[0]:.0f})")
        last = run["curve"][-1]
        cells += [f"{last[key]:.2f}" for key in ("forget", "held_out", "stream")]
        cells.append(f"{last['forget_nats']:.1f}")
        yield f"| {run['label']} | {' | '.join(cells)} |"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The trajectories, and beside them both probabilities over steps."""
    styles = methods(1.0)
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    axes = figure.subplot_mosaic([["plane", "forget"], ["plane", "retain"]], width_ratios=(1.25, 1))
    for name, run in results["runs"].items():
        forget, held_out, steps, nats = (
            [point[key] for point in run["curve"]]
            for key in ("forget", "held_out", "step", "forget_nats")
        )
        _line(axes["plane"], styles[name], forget, held_out)
        _line(axes["forget"], styles[name], steps, nats)
        _line(axes["retain"], styles[name], steps, held_out)
    plane = axes["plane"]
    plane.set_title("Each run starts top right; the ideal is top left", loc="left", fontsize=11)
    plane.set(xlabel="probability of forgotten answers", xlim=(-0.02, 1.02))
    plane.set(ylabel="probability of retained answers that no retain term sees", ylim=(-0.02, 1.05))
    plane.legend(loc="lower right", frameon=False, fontsize=10)
    axes["forget"].set_title("Forgotten answers, log-prob of a token", loc="left", fontsize=11)
    axes["forget"].set(ylabel="nats per token")
    axes["retain"].set_title("Retained answers that no retain term sees", loc="left", fontsize=11)
    axes["retain"].set(ylabel="probability", ylim=(-0.02, 1.05), xlabel="optimiser step")
    for each in axes.values():
        each.grid(visible=True, color="#e6e6e6", linewidth=0.7)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, format="png")


def _line(axes: Axes, method: Method, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.plot(
        xs,
        ys,
        color=method.color,
        linestyle=method.style,
        marker=method.marker,
        linewidth=1.6,
        markersize=4,
        markevery=max(len(xs) // 10, 1),
        label=method.label,
    )


def rounded(point: Mapping[str, float]) -> Point:
    """Values to four places, as the page's file holds them."""
    return {key: round(value, 4) for key, value in point.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
