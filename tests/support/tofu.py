"""TOFU's files, small and made up."""

import json
import random
from pathlib import Path

from tests.support.tiny import random_text

_FILES = {
    "forget10_perturbed.json": ("forget", True),
    "retain_perturbed.json": ("retain", True),
    "real_authors_perturbed.json": ("ra", False),
    "world_facts_perturbed.json": ("wf", False),
}


def write_tofu(parent: Path, *, num: int = 5) -> Path:
    """A folder with TOFU's four files, of so many rows each."""
    folder = parent / "tofu"
    folder.mkdir(exist_ok=True)
    for file, (split, has_paraphrase) in _FILES.items():
        generator = random.Random(split)
        rows = []
        for number in range(num):
            place = "ab" if number == 0 else random_text(generator, 2, 9)
            row = {"question": f"Where is {split} {number}?", "answer": f"In {place}."}
            if has_paraphrase:
                row["paraphrased_answer"] = f"It lies in {place}."
            wrong = [f"It lies in {random_text(generator, 2, 9)}." for _ in range(3)]
            rows.append({**row, "perturbed_answer": wrong})
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder
