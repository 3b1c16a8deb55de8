"""What answers look like without any judge, and the answers of sanity rows."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.errors import UserError
from prefopt.evaluation.analysis_table import Entrants
from prefopt.evaluation.numbers import Estimate, Method
from prefopt.evaluation.statistics.intervals import hierarchical_interval, unit_of
from prefopt.evaluation.types import Answer, Prompt

NULL_ANSWER = "I am happy to help with that."
"""A constant answer to everything: what a judge can be fooled by without reading the prompt."""


def null_answers(prompts: Iterable[Prompt], text: str = NULL_ANSWER) -> list[Answer]:
    """The same text for every turn of every prompt, as a system of its own."""
    return [
        Answer(prompt_id=each.prompt_id, turns=tuple(text for _ in each.turns)) for each in prompts
    ]


def longest_answers(answers: Mapping[str, Sequence[Answer]]) -> list[Answer]:
    """For each prompt and sample the longest answer of any system, as a system of its own.

    Of equally long ones that of the first system. Since the texts are those of the others, a judge
    with a cache is asked nothing new.
    """
    longest: dict[tuple[str, int], Answer] = {}
    for of_system in answers.values():
        for answer in of_system:
            key = (answer.prompt_id, answer.sample)
            if key not in longest or answer.num_characters > longest[key].num_characters:
                longest[key] = answer
    return list(longest.values())


def method_numbers(
    answers: Mapping[str, Sequence[Answer]],
    methods: Mapping[str, Sequence[str]],
    baseline: str,
    *,
    seeds: Mapping[str, Sequence[int]],
    settings: Mapping[str, Mapping[str, Any]],
    sanity: Collection[str] = (),
) -> list[Method]:
    """One row per method, in their order.

    The length ratio is that of mean lengths on the prompts that both answered: a ratio prompt by
    prompt would be ruled by the baseline's shortest answers. It is None for the baseline, and if
    the baseline's answers are all empty. Where no reason to finish is known, `share_cut` is over 0
    prompts.

    Args:
        answers: system -> its answers.
        methods: method -> its systems, one per training seed.
        baseline: the method that others are compared with.
        seeds: method -> its training seeds; none for what was not trained.
        settings: method -> what it was trained with; none for what was not trained.
        sanity: methods that show what a judge can be fooled by.

    Raises:
        UserError: if a system has no answers, or the methods do not fit together.
    """
    Entrants.of(methods, baseline)
    for system in (each for systems in methods.values() for each in systems):
        if not answers.get(system):
            raise UserError(f"System {system} has no answers. Generate them, or leave it out.")
    of_baseline = [answers[system] for system in methods[baseline]]
    rows = []
    for name, systems in methods.items():
        own = [answers[system] for system in systems]
        rows.append(
            Method(
                name=name,
                kind="baseline" if name == baseline else _kind(name, sanity),
                settings=dict(settings.get(name, {})),
                seeds=list(seeds.get(name, ())),
                length=_estimate(own, lambda answer: float(answer.num_characters)),
                length_ratio=None if name == baseline else _length_ratio(own, of_baseline),
                share_cut=_estimate(own, _is_cut, share=True),
                share_empty=_estimate(own, _is_empty, share=True),
            )
        )
    return rows


def _kind(name: str, sanity: Collection[str]) -> Any:
    return "sanity" if name in sanity else "candidate"


def _is_cut(answer: Answer) -> float | None:
    return float("length" in answer.finish_reasons) if answer.finish_reasons else None


def _is_empty(answer: Answer) -> float:
    return float(not all(turn.strip() for turn in answer.turns))


def _estimate(
    by_seed: Sequence[Sequence[Answer]],
    measure: Callable[[Answer], float | None],
    *,
    share: bool = False,
) -> Estimate:
    means = [_by_prompt(answers, measure) for answers in by_seed]
    if not set.intersection(*map(set, means)):
        return Estimate(value=0.0, low=None, high=None, n=0, unit=unit_of("prompts", len(by_seed)))
    return hierarchical_interval(means, "prompts", share=share)


def _by_prompt(
    answers: Sequence[Answer], measure: Callable[[Answer], float | None]
) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for answer in answers:
        value = measure(answer)
        if value is not None:
            values.setdefault(answer.prompt_id, []).append(value)
    return {prompt: float(np.mean(each)) for prompt, each in values.items()}


def _length_ratio(
    own: Sequence[Sequence[Answer]], of_baseline: Sequence[Sequence[Answer]]
) -> Estimate | None:
    """Ratio of means, linearised: each value is the ratio plus what its prompt adds to it."""
    lengths = [_by_prompt(answers, lambda each: float(each.num_characters)) for answers in own]
    base_by_seed = [
        _by_prompt(answers, lambda each: float(each.num_characters)) for answers in of_baseline
    ]
    shared = set.intersection(*map(set, [*lengths, *base_by_seed]))
    base = {p: float(np.mean([each[p] for each in base_by_seed])) for p in shared}
    if not base or sum(base.values()) == 0:
        return None
    mean_base = float(np.mean(list(base.values())))
    ratio = float(np.mean([each[p] for each in lengths for p in base])) / mean_base
    return hierarchical_interval(
        [
            {p: ratio + (each[p] - ratio * base[p]) / mean_base for p in sorted(base)}
            for each in lengths
        ],
        "prompts",
    )
