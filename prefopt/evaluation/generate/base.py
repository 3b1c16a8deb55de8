"""What answers prompts, and what it is asked."""

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from prefopt.errors import UserError
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Answer, Message, Prompt

_NUM_SEEDS = 1 << 31
"""Endpoints take seeds of 31 bits."""

Key = tuple[str, int]
"""Prompt and sample: what a file of answers has once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One answer that is wanted."""

    prompt: Prompt
    sample: int
    seed: int
    """Of its draws, in [0, 2**31)."""

    @property
    def key(self) -> Key:
        """What a file of answers knows it by."""
        return self.prompt.prompt_id, self.sample


@runtime_checkable
class Backend(Protocol):
    """Something that answers."""

    model: str
    """Path or id, for the header of the file."""
    decode: dict[str, Any]
    """Everything that an answer depends on beside the model and the prompt, as plain values."""
    chat_template: str | None
    """Hash of the template that renders prompts; None where it is unknown or there is none."""
    weights: str | None
    """Hash of the files of weights; None where they are not at hand."""
    versions: dict[str, str]
    """Of the packages that answer."""

    def answers(
        self, requests: Sequence[Request], done: Set[Key]
    ) -> Iterator[tuple[Request, Answer]]:
        """An answer to every request that is not done yet, as they come."""
        ...


def requests_for(prompts: Sequence[Prompt], section: GenerationSection) -> list[Request]:
    """Every answer that is wanted, sample after sample of each prompt."""
    return [
        Request(prompt=prompt, sample=sample, seed=_seed(section.seed, prompt, sample))
        for prompt in prompts
        for sample in range(section.num_samples)
    ]


def messages_of(prompt: Prompt, said: Sequence[str], system: str | None) -> list[Message]:
    """The dialogue up to and with the next turn of the user.

    Args:
        prompt: with at least one turn more than was answered.
        said: the system's own answers to the earlier turns.
        system: a system message, where the prompt brings none.
    """
    messages = list(prompt.context)
    if system is not None and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    for asked, answered in zip(prompt.turns, said, strict=False):
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    messages.append({"role": "user", "content": prompt.turns[len(said)]})
    return messages


def short(prompt: Prompt) -> str:
    """How messages call a prompt."""
    name = "" if prompt.source_id is None else f"{prompt.source_id} "
    words = " ".join(prompt.turns[0].split())
    return f"prompt {name}'{words[:40]}{'...' if len(words) > 40 else ''}'"


def check_unique(prompts: Sequence[Prompt]) -> None:
    """Refuse a prompt that is there twice.

    Raises:
        UserError: naming it.
    """
    seen = set[str]()
    for prompt in prompts:
        if prompt.prompt_id in seen:
            raise UserError(f"{short(prompt)} is there twice. Remove one of the two.")
        seen.add(prompt.prompt_id)


def _seed(seed: int, prompt: Prompt, sample: int) -> int:
    text = f"{seed}/{prompt.prompt_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % _NUM_SEEDS
