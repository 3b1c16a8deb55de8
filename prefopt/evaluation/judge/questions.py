"""Questions to a judge out of systems' answers to the same prompts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prefopt.errors import UserError
from prefopt.evaluation.types import Answer, PairQuestion, Prompt, ScoreQuestion

Answers = Mapping[tuple[str, int], Answer]
"""Of one system, by prompt and sample."""


def by_place(system: str, answers: Iterable[Answer], prompts: Mapping[str, Prompt]) -> Answers:
    """A system's answers to the prompts, by prompt and sample; those to others are left aside.

    Raises:
        UserError: if the system left prompts out, with their number.
    """
    found = {(answer.prompt_id, answer.sample): answer for answer in answers}
    missing = prompts.keys() - {prompt for prompt, _ in found}
    if missing:
        raise UserError(
            f"{system} has no answer to {len(missing)} of {len(prompts)} prompts, such as "
            f"{min(missing)}. Generate the rest, or remove its file."
        )
    return {place: answer for place, answer in found.items() if place[0] in prompts}


def pair_questions(
    pairs: Iterable[tuple[str, str]],
    answers: Mapping[str, Answers],
    prompts: Mapping[str, Prompt],
    turns: Sequence[int] | None = None,
) -> Iterator[tuple[PairQuestion, str, str]]:
    """Two systems' answers to every prompt, sample by sample and turn by turn.

    Args:
        pairs: the systems that meet.
        answers: of all systems.
        prompts: prompt_id -> prompt.
        turns: those that are judged, from 1; None for all.

    Raises:
        UserError: if one system has a sample of a prompt that the other has not.
    """
    for first, second in pairs:
        for place in dict.fromkeys([*answers[first], *answers[second]]):
            answer, other = (_sample(answers, *names, place) for names in _both(first, second))
            prompt = prompts[place[0]]
            for turn in _turns_of(prompt, turns):
                question = PairQuestion(prompt=prompt, first=answer, second=other, turn=turn)
                yield question, first, second


def score_questions(
    systems: Iterable[str],
    answers: Mapping[str, Answers],
    prompts: Mapping[str, Prompt],
    turns: Sequence[int] | None = None,
) -> Iterator[tuple[ScoreQuestion, str]]:
    """Every answer of some systems, turn by turn."""
    for system in systems:
        for answer in answers[system].values():
            prompt = prompts[answer.prompt_id]
            for turn in _turns_of(prompt, turns):
                yield ScoreQuestion(prompt=prompt, answer=answer, turn=turn), system


def _both(first: str, second: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (first, second), (second, first)


def _sample(
    answers: Mapping[str, Answers], system: str, other: str, place: tuple[str, int]
) -> Answer:
    found = answers[system].get(place)
    if found is None:
        raise UserError(
            f"{system} has no sample {place[1]} for prompt {place[0]}, and {other} has. "
            "Generate both with the same number of samples."
        )
    return found


def _turns_of(prompt: Prompt, turns: Sequence[int] | None) -> Sequence[int]:
    every = range(1, len(prompt.turns) + 1)
    return every if turns is None else [turn for turn in every if turn in turns]
