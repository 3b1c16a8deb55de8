"""Which answers are put before a judge, and which setting of a method its verdicts pick."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from prefopt.comparison.section import CONSTANT, LONGEST
from prefopt.errors import UserError
from prefopt.evaluation.analysis_methods import longest_answers, null_answers
from prefopt.evaluation.types import Answer, Judgment, Prompt

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


def sanity_answers(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]], num_samples: int
) -> dict[str, list[Answer]]:
    """Of the sanity rows, with as many samples of a prompt as all other systems have."""
    constant = [
        replace(answer, sample=sample)
        for answer in null_answers(prompts)
        for sample in range(num_samples)
    ]
    return {CONSTANT: constant, LONGEST: longest_answers(answers)}


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
