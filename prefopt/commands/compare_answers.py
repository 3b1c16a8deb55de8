"""What the start and the trained policies of a comparison answer, each with its own recipe."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from prefopt.commands.diagnose_subject import subject_of
from prefopt.comparison.plan import Run
from prefopt.comparison.section import START
from prefopt.config import Recipe
from prefopt.evaluation.generate.answers import check_header, read_answers
from prefopt.evaluation.generate.load import backend_of, digest_of
from prefopt.evaluation.generate.run import digest_of_prompts, generate
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Answer, Message, Prompt
from prefopt.models.section import AdapterSection, ModelSection

Weights = tuple[ModelSection, AdapterSection | None]


class Answering:
    """Lets systems answer prompts, one model in memory at a time."""

    def __init__(self, folder: Path, section: GenerationSection, start: Recipe) -> None:
        """Loads nothing.

        Args:
            folder: of all answers; each suite has one of its own in it.
            section: how systems answer.
            start: any recipe of the comparison.
        """
        self._folder, self._section = folder, section
        self._start = start

    def answers(
        self, suite: str, prompts: Sequence[Prompt], runs: Sequence[Run]
    ) -> dict[str, Sequence[Answer]]:
        """Of the start and of the runs' policies, by system; what is on disk is not drawn again.

        Raises:
            UserError: if a file's answers are by other weights or settings or to other prompts, or
                a prompt cannot be answered.
        """
        of_start = self._of(suite, START, start_of(self._start), prompts)
        found: dict[str, Sequence[Answer]] = {START: of_start}
        for run in runs:
            found[run.name] = self._of(suite, run.name, policy_of(run), prompts)
        return found

    def _of(
        self, suite: str, system: str, weights: Weights, prompts: Sequence[Prompt]
    ) -> Sequence[Answer]:
        path = self._folder / suite / f"{system}.jsonl"
        if path.exists() and path.stat().st_size == 0:
            # A kill came between the file and its first line.
            path.unlink()
        if path.exists():
            there = self._checked(path, system, weights, prompts)
            if len(there) == len(prompts) * self._section.num_samples:
                return there
        backend = backend_of(*weights, self._section, name=_name(weights))
        answers = generate(backend, prompts, self._section, path, system=system)
        del backend
        release()
        return answers

    def _checked(
        self, path: Path, system: str, weights: Weights, prompts: Sequence[Prompt]
    ) -> Sequence[Answer]:
        """What is there, if it is by these weights and settings; they need not be loaded for it."""
        header, there = read_answers(path)
        wanted = {
            **header,
            "system": system,
            "model": _name(weights),
            "weights": digest_of(*weights),
            "prompts": digest_of_prompts(prompts),
            "decode": {**header["decode"], **self._section.model_dump(mode="json")},
        }
        check_header(path, wanted)
        return there


def start_of(recipe: Recipe) -> Weights:
    """What a run starts from: a model, or an adapter that training goes on from."""
    goes_on = recipe.adapter is not None and recipe.adapter.path is not None
    return _as_loaded(recipe.model), recipe.adapter if goes_on else None


def policy_of(run: Run) -> Weights:
    """What a finished run has trained."""
    subject = subject_of(str(run.folder), [], data=[], objective=None, reference=None)
    return _as_loaded(subject.model), subject.adapter


def with_system(prompts: Sequence[Prompt], system: str | None) -> list[Prompt]:
    """Prompts as models read them: after a system message, where they bring none of their own."""
    message = [] if system is None else [Message(role="system", content=system)]
    return [
        prompt
        if prompt.context and prompt.context[0]["role"] == "system"
        else replace(prompt, context=(*message, *prompt.context))
        for prompt in prompts
    ]


def release() -> None:
    """Give memory of models that nothing refers to back to the device, where runs need it."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _as_loaded(model: ModelSection) -> ModelSection:
    """Without what is for training: its layout and dropout."""
    return model.model_copy(update={"layout": "padded", "dropout": False})


def _name(weights: Weights) -> str:
    model, adapter = weights
    return model.path if adapter is None or adapter.path is None else adapter.path
