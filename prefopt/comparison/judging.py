"""Which answers are put before a judge, and which setting of a method its verdicts pick."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from prefopt.errors import UserError
from prefopt.evaluation.types import Answer, Judgment, PairQuestion, Prompt, ScoreQuestion

Systems = Mapping[str, Mapping[int | None, str]]
"""Method -> seed -> system; what was not trained has one system, under None."""


def matches(systems: Systems, *, against: str | None = None) -> Iterator[tuple[str, str]]:
    """Systems to compare: those of one seed with each other, and all with what has no seed.

    Args:
        systems: of all methods.
        against: compare with this method alone; None: every two methods.
    """
    for first, second in combinations(systems, 2):
        if against is not None and against not in (first, second):
            continue
        for seed, system in systems[first].items():
            for other_seed, other in systems[second].items():
                if seed == other_seed or None in (seed, other_seed):
                    yield system, other


def questions(
    pairs: Iterable[tuple[str, str]],
    answers: Mapping[str, Sequence[Answer]],
    prompts: Mapping[str, Prompt],
) -> Iterator[tuple[PairQuestion, str, str]]:
    """Every turn of every prompt that both systems answered, sample by sample.

    Raises:
        UserError: if a system left out prompts, with their number.
    """
    found = {system: _by_place(system, given, prompts) for system, given in answers.items()}
    for first, second in pairs:
        for place, answer in found[first].items():
            other = found[second].get(place)
            if other is None:
                raise UserError(
                    f"{second} has no sample {place[1]} for prompt {place[0]}, and {first} has. "
                    "Generate both with the same number of samples."
                )
            for turn in range(1, len(prompts[place[0]].turns) + 1):
                question = PairQuestion(
                    prompt=prompts[place[0]], first=answer, second=other, turn=turn
                )
                yield question, first, second


def scored(
    systems: Iterable[str],
    answers: Mapping[str, Sequence[Answer]],
    prompts: Mapping[str, Prompt],
) -> Iterator[tuple[ScoreQuestion, str]]:
    """Every turn of every answer of some systems."""
    for system in systems:
        for answer in _by_place(system, answers[system], prompts).values():
            prompt = prompts[answer.prompt_id]
            for turn in range(1, len(prompt.turns) + 1):
                yield ScoreQuestion(prompt=prompt, answer=answer, turn=turn), system


def wins_by_prompt(judgments: Iterable[Judgment], system: str, opponent: str) -> dict[str, float]:
    """Probability that a system's answer is better than the opponent's, ties half, by prompt.

    Orders, turns and samples are averaged. A question that was judged in one order only is left
    out, so no slot counts more than the other.
    """
    in_orders: dict[tuple[str, int, int], dict[bool, float]] = {}
    for each in judgments:
        if {each.system, each.opponent} != {system, opponent} or not each.is_ok:
            continue
        is_first = each.system == system
        place = (each.prompt_id, each.turn, each.sample)
        in_orders.setdefault(place, {})[is_first] = each.win if is_first else 1 - each.win
    of_prompt: dict[str, list[float]] = {}
    for (prompt, _, _), wins in in_orders.items():
        if len(wins) == 2:
            of_prompt.setdefault(prompt, []).append((wins[True] + wins[False]) / 2)
    return {prompt: sum(wins) / len(wins) for prompt, wins in of_prompt.items()}


def best_setting(validation: Sequence[float]) -> int:
    """Number of the setting with the most wins against the start; of equal ones the first."""
    return max(range(len(validation)), key=lambda number: (validation[number], -number))


def check_apart(test: Sequence[Prompt], validation: Sequence[Prompt]) -> None:
    """Refuse prompts that settings are picked by and results are reported on.

    Raises:
        UserError: if there are any, with the first one.
    """
    known = {prompt.prompt_id for prompt in test}
    shared = [prompt for prompt in validation if prompt.prompt_id in known]
    if shared:
        raise UserError(
            f"prompts.validation shares {len(shared)} prompts with prompts.test, the first is "
            f"{shared[0].turns[0][:60]!r}. Remove them from one of the files."
        )


def _by_place(
    system: str, answers: Sequence[Answer], prompts: Mapping[str, Prompt]
) -> dict[tuple[str, int], Answer]:
    found = {(answer.prompt_id, answer.sample): answer for answer in answers}
    missing = prompts.keys() - {prompt for prompt, _ in found}
    if missing:
        raise UserError(
            f"{system} has no answer to {len(missing)} of {len(prompts)} prompts, such as "
            f"{min(missing)}. Generate the rest, or remove its file."
        )
    return {place: answer for place, answer in found.items() if place[0] in prompts}
