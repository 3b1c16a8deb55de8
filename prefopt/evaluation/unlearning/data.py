"""TOFU's own files: questions with their answer, a paraphrase of it, and wrong ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefopt.data.files import file_rows
from prefopt.data.formats import Row
from prefopt.data.identity import digest
from prefopt.errors import UserError

SPLITS = ("forget", "retain", "ra", "wf")
"""Forgotten authors, authors to keep, real authors, world facts: prefixes of metrics."""

_FILES = {
    "retain": "retain_perturbed.json",
    "ra": "real_authors_perturbed.json",
    "wf": "world_facts_perturbed.json",
}
_HAVE_PARAPHRASES = ("forget", "retain")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question."""

    question: str
    answer: str
    paraphrased: str | None
    """The answer in other words; None for real authors and world facts."""
    perturbed: tuple[str, ...]
    """Wrong answers, at least one."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer, its paraphrase if there is one, and the wrong ones."""
        between = () if self.paraphrased is None else (self.paraphrased,)
        return (self.answer, *between, *self.perturbed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tofu:
    """The four sets of a forget split."""

    forget: str
    """Its name, such as forget10."""
    items: Mapping[str, tuple[Item, ...]]
    """By the names of `SPLITS`."""
    fingerprints: Mapping[str, str]
    """Of each whole set, however many of its items are looked at."""


def read_tofu(folder: Path, forget: str = "forget10", max_items: int | None = None) -> Tofu:
    """The sets that TOFU is measured on, as files of JSON lines or a JSON array.

    Args:
        folder: holds FORGET_perturbed.json, retain_perturbed.json, real_authors_perturbed.json and
            world_facts_perturbed.json.
        forget: name of the forget split.
        max_items: how many of each set to look at, from its start; None for all.

    Raises:
        UserError: if a file is absent, or a row lacks a field or has an empty one.
    """
    if not folder.is_dir():
        raise UserError(f"--data: no folder {folder}. Give the folder that holds TOFU's files.")
    files = {"forget": f"{forget}_perturbed.json", **_FILES}
    for split, name in files.items():
        if not (folder / name).is_file():
            raise UserError(_missing(folder, split, name))
    whole = {split: _read(folder / name, split) for split, name in files.items()}
    return Tofu(
        forget=forget,
        items={split: items[:max_items] for split, items in whole.items()},
        fingerprints={split: digest(repr(items)) for split, items in whole.items()},
    )


def _missing(folder: Path, split: str, name: str) -> str:
    if split != "forget":
        return f"{folder}: no file {name}. TOFU's perturbed sets are one folder; copy it there."
    suffix = "_perturbed.json"
    known = [file.name.removesuffix(suffix) for file in folder.glob(f"forget*{suffix}")]
    there = f", or name a set that is there: {', '.join(sorted(known))}" if known else ""
    # Another set is another experiment, so none is proposed for being near in name.
    return f"--forget: {folder} holds no {name}. Copy TOFU's file there{there}."


def _read(path: Path, split: str) -> tuple[Item, ...]:
    items = tuple(_item(row, split, f"{path}:{number}") for number, row in file_rows(path))
    if not items:
        raise UserError(f"{path}: holds no questions. Copy the file of TOFU again.")
    return items


def _item(row: Row, split: str, place: str) -> Item:
    wrong = row.get("perturbed_answer")
    if not isinstance(wrong, list) or not wrong:
        raise UserError(
            f"{place}: perturbed_answer should be a list of wrong answers, found the fields "
            f"{', '.join(row)}. Give TOFU's file of that name, which ends in _perturbed."
        )
    paraphrased = None
    if split in _HAVE_PARAPHRASES:
        paraphrased = _text(row.get("paraphrased_answer"), "paraphrased_answer", place)
    return Item(
        question=_text(row.get("question"), "question", place),
        answer=_text(row.get("answer"), "answer", place),
        paraphrased=paraphrased,
        perturbed=tuple(_text(each, "perturbed_answer", place) for each in wrong),
    )


def _text(value: object, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: {name} should be text that is not empty, found {value!r}.")
    return value
