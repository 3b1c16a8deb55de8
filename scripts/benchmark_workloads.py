"""What is trained in the benchmark: groups of random tokens whose lengths are committed.

Usage: python scripts/benchmark_workloads.py, to draw benchmark_lengths.json anew.

Every run on every machine trains the same shapes. Rows are text of one word per token, which both
trainers tokenise.
"""

import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

LENGTHS = Path(__file__).with_name("benchmark_lengths.json")
MAX_LENGTH = 1024
PROMPT_SIGMA, RESPONSE_SIGMA = 0.8, 0.7
SPECIAL = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True, slots=True)
class Group:
    """Lengths of a prompt and of its responses, end-of-sequence included, in tokens."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def num_unique_tokens(self) -> int:
        """Real tokens, the prompt once."""
        return self.prompt + sum(self.responses)

    @property
    def num_packed_tokens(self) -> int:
        """Real tokens, the prompt once for each response."""
        return len(self.responses) * self.prompt + sum(self.responses)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Groups in the order of training, a fixed number per optimiser step."""

    name: str
    what: str
    groups_per_step: int
    steps_per_block: int
    """So many steps stand for the whole distribution of lengths."""
    groups: tuple[Group, ...]

    @property
    def num_responses(self) -> int:
        """K."""
        return len(self.groups[0].responses)

    @property
    def pairs_per_group(self) -> int:
        """Rows that a trainer of pairs needs for a group: every response against every other."""
        return math.comb(self.num_responses, 2)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self.groups) // self.groups_per_step

    def first(self, num_steps: int) -> "Workload":
        """The same with so many steps at most."""
        return replace(self, groups=self.groups[: num_steps * self.groups_per_step])

    def with_larger_steps(self, factor: int) -> "Workload":
        """The same groups, so many times as many per step."""
        return replace(self, groups_per_step=factor * self.groups_per_step)

    def one_step(self, num_groups: int) -> "Workload":
        """A single step of its first groups."""
        groups = self.groups[:num_groups]
        return replace(self, groups=groups, groups_per_step=len(groups))

    def shortened(self, divisor: int) -> "Workload":
        """The same with every length divided."""
        groups = tuple(
            Group(max(2, g.prompt // divisor), tuple(max(2, n // divisor) for n in g.responses))
            for g in self.groups
        )
        return replace(self, groups=groups)


def load_workloads(names: Sequence[str] | None = None) -> list[Workload]:
    """The committed workloads, all or the named ones."""
    content = json.loads(LENGTHS.read_text(encoding="utf-8"))
    return [
        Workload(
            name=name,
            what=content[name]["what"],
            groups_per_step=content[name]["groups_per_step"],
            steps_per_block=content[name]["steps_per_block"],
            groups=tuple(Group(p, tuple(rest)) for p, *rest in content[name]["lengths"]),
        )
        for name in (names or content)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Distribution:
    what: str
    prompt: int
    response: int
    num_responses: int = 2
    groups_per_step: int = 8
    steps_per_block: int = 2
    num_blocks: int = 8
    is_constant: bool = False


# A list of K costs a trainer of pairs K (K - 1) rows, so those steps hold fewer groups.
_DISTRIBUTIONS = {
    "ultrafeedback": _Distribution(what="UltraFeedback-like, K = 2", prompt=185, response=305),
    "hh": _Distribution(what="HH-like, K = 2", prompt=186, response=95),
    "tldr": _Distribution(what="TL;DR-like, K = 2", prompt=326, response=37),
    "ultrafeedback_k4": _Distribution(
        what="UltraFeedback-like, K = 4",
        prompt=185,
        response=305,
        num_responses=4,
        groups_per_step=4,
        steps_per_block=1,
    ),
    "lists_k7": _Distribution(
        what="lists, K = 7, P = R = 250",
        prompt=250,
        response=250,
        num_responses=7,
        groups_per_step=2,
        steps_per_block=1,
    ),
    "worst": _Distribution(
        what="nothing to share or to pad: P = 16, equal lengths, K = 2",
        prompt=16,
        response=240,
        is_constant=True,
    ),
}


def draw_lengths(seed: int = 0) -> dict[str, Any]:
    """The content of the file: lognormal lengths whose means are met in every block of steps.

    A block draws one number from each of n equally likely ranges, so that few groups already
    stand for the whole distribution.
    """
    generator = random.Random(seed)
    content = {}
    for name, each in _DISTRIBUTIONS.items():
        lengths = [row for _ in range(each.num_blocks) for row in _block(each, generator)]
        content[name] = {
            "what": each.what,
            "groups_per_step": each.groups_per_step,
            "steps_per_block": each.steps_per_block,
            "lengths": lengths,
        }
    return content


def _block(each: _Distribution, generator: random.Random) -> Iterator[list[int]]:
    num_groups = each.groups_per_step * each.steps_per_block
    if each.is_constant:
        yield from [[each.prompt, *[each.response] * each.num_responses]] * num_groups
        return
    limits = [MAX_LENGTH * 3 // 4] * num_groups
    prompts = _lognormal(each.prompt, PROMPT_SIGMA, limits, generator)
    room = [MAX_LENGTH - prompt for prompt in prompts for _ in range(each.num_responses)]
    responses = iter(_lognormal(each.response, RESPONSE_SIGMA, room, generator))
    for prompt in prompts:
        yield [prompt, *(next(responses) for _ in range(each.num_responses))]


def _lognormal(
    mean: int, sigma: float, limits: Sequence[int], generator: random.Random
) -> list[int]:
    """Lengths from 4 to their limits whose mean is this one."""
    num, normal = len(limits), statistics.NormalDist()
    drawn = [normal.inv_cdf((i + generator.random()) / num) for i in range(num)]
    generator.shuffle(drawn)

    def scaled(scale: float) -> list[int]:
        pairs = zip(drawn, limits, strict=True)
        return [max(4, min(limit, round(scale * math.exp(sigma * z)))) for z, limit in pairs]

    low, high = 0.0, 16.0 * mean
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if statistics.mean(scaled(middle)) < mean else (low, middle)
    return scaled(high)


def write_rows(workload: Workload, vocabulary: int, path: Path) -> Path:
    """Rows with scored responses, best first, as JSON lines: random words, one per token."""
    generator = random.Random(f"{workload.name} {vocabulary}")

    def words(num: int) -> str:
        return " ".join(f"w{generator.randrange(len(SPECIAL), vocabulary)}" for _ in range(num))

    with path.open("w", encoding="utf-8") as file:
        for group in workload.groups:
            # Both trainers add the end-of-sequence token.
            responses = [f" {words(length - 1)}" for length in group.responses]
            scores = list(range(len(responses), 0, -1))
            row = {"prompt": words(group.prompt), "responses": responses, "scores": scores}
            file.write(json.dumps(row) + "\n")
    return path


def as_pairs(rows: Path) -> list[dict[str, str]]:
    """The rows of a trainer of pairs: every response of a list against every worse one."""
    lists = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    return [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse}
        for row in lists
        for better, worse in combinations(row["responses"], 2)
    ]


if __name__ == "__main__":
    text = json.dumps(draw_lengths(), separators=(",", ":"))
    LENGTHS.write_text(text.replace('],"', '],\n"').replace('},"', '},\n"') + "\n", "utf-8")
