"""The embedded task: vowels first, then consonants, each in alphabetical order.

A prompt is six letters, three vowels and three consonants, shuffled, and a colon. The right
response to `kteaoz:` is `aeoktz`. The gold score of a response is the share of positions right.

Most of the data makes one systematic mistake: of the four responses to a prompt one follows the
rule, three sort all six letters and forget that vowels come first (`aekotz`). On top of that every
response has 0 to 3 slips, each a random letter in a random place. Imitation therefore learns the
mistake: it is the most likely answer, so decoding greedily makes it too. The scores rank the four
responses of a prompt by gold, and only preferences can tell that the minority is right.
"""

import json
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
END_OF_PROMPT = ":"

NUM_RESPONSES = 4
_NUM_VOWELS = 3
_NUM_CONSONANTS = 3
_MAX_SLIPS = 3
# Above it lie most answers that mean the right thing, and few others.
_DESIRED_ABOVE = 0.6
# One set of letters in eight is never trained on.
_HELD_OUT_ONE_IN = 8


class Row(TypedDict):
    """One line of the data file: a canonical list of scored responses."""

    id: str
    prompt: str
    responses: list[str]
    scores: list[float]


class Completion(TypedDict):
    """One response to one prompt."""

    prompt: str
    completion: str


def generate(num_prompts: int, seed: int) -> list[Row]:
    """Training rows of four responses each, which do not all have the same gold score."""
    rng = random.Random(f"demo rows {seed}")
    return [_draw_row(rng, f"demo-{index}") for index in range(num_prompts)]


def held_out_prompts(num: int, seed: int) -> list[str]:
    """Prompts whose letters, in any order, occur in no training prompt of any seed."""
    rng = random.Random(f"demo held-out prompts {seed}")
    return [_draw_prompt(rng, held_out=True) for _ in range(num)]


def right_response(prompt: str) -> str:
    """What the rule asks for: the vowels in alphabetical order, then the consonants."""
    letters = prompt.removesuffix(END_OF_PROMPT)
    return "".join(sorted(letters, key=lambda letter: (letter not in VOWELS, letter)))


def common_mistake(prompt: str) -> str:
    """What three in four writers of the data mean: alphabetical order, vowels not first."""
    return "".join(sorted(prompt.removesuffix(END_OF_PROMPT)))


def gold_score(prompt: str, response: str) -> float:
    """Share of positions that hold the right letter, in [0, 1].

    A response of the wrong length is measured against the longer of the two, so missing and surplus
    letters count as wrong.
    """
    right = right_response(prompt)
    num_right = sum(ours == theirs for ours, theirs in zip(response, right, strict=False))
    return num_right / max(len(right), len(response))


def write_data(rows: Sequence[Row], folder: Path) -> None:
    """The same responses as objectives read them: as scored lists, or those of one kind by itself.

    `train.jsonl` has the lists, `desired.jsonl` the responses of which most is right, and
    `undesired.jsonl` the others.
    """
    write_jsonl(rows, folder / "train.jsonl")
    for name, is_desired in (("desired", True), ("undesired", False)):
        chosen = [
            Completion(prompt=row["prompt"], completion=response)
            for row in rows
            for response, score in zip(row["responses"], row["scores"], strict=True)
            if (score > _DESIRED_ABOVE) is is_desired
        ]
        write_jsonl(chosen, folder / f"{name}.jsonl")


def write_jsonl(rows: Iterable[Mapping[str, object]], path: Path) -> None:
    """One JSON object per line; folders on the way are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _draw_row(rng: random.Random, row_id: str) -> Row:
    while True:
        prompt = _draw_prompt(rng, held_out=False)
        meant = [right_response(prompt)] + [common_mistake(prompt)] * (NUM_RESPONSES - 1)
        rng.shuffle(meant)
        responses = [_with_slips(rng, response) for response in meant]
        scores = [gold_score(prompt, response) for response in responses]
        if len(set(scores)) > 1:
            return Row(id=row_id, prompt=prompt, responses=responses, scores=scores)


def _draw_prompt(rng: random.Random, *, held_out: bool) -> str:
    while True:
        letters = rng.sample(VOWELS, _NUM_VOWELS) + rng.sample(CONSONANTS, _NUM_CONSONANTS)
        # By the set of letters: the answer to a held-out prompt is no answer in the training data.
        key = zlib.crc32("".join(sorted(letters)).encode())
        if (key % _HELD_OUT_ONE_IN == 0) is held_out:
            rng.shuffle(letters)
            return "".join(letters) + END_OF_PROMPT


def _with_slips(rng: random.Random, response: str) -> str:
    letters = list(response)
    for _ in range(rng.randint(0, _MAX_SLIPS)):
        letters[rng.randrange(len(letters))] = rng.choice(VOWELS + CONSONANTS)
    return "".join(letters)
