"""From everything that was gathered to the numbers of a report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from scipy import stats

from prefopt.comparison.frontier import Measured, common_kl, wins_at
from prefopt.comparison.judging import wins_by_prompt
from prefopt.evaluation.analysis import judge_numbers, method_numbers
from prefopt.evaluation.numbers import (
    SCHEMA,
    Displacement,
    Estimate,
    Example,
    ExampleAnswer,
    FrontierPoint,
    MatchedRow,
    Report,
    Saved,
    SweepPoint,
)
from prefopt.evaluation.statistics.intervals import (
    hierarchical_interval,
    mean_interval,
    unit_of,
)
from prefopt.evaluation.types import Answer, Judgment, Prompt

_NUM_EXAMPLES = 8
_RANKING = (
    "ranking_accuracy",
    "ranking_accuracy/per_token",
    "implicit_reward_accuracy",
    "objective_accuracy",
    "ranking_accuracy/reference",
    "margin_auc/policy",
    "accuracy_by_length/chosen_shorter",
    "accuracy_by_length/chosen_longer",
)
"""What the report says of held-out pairs; measured/*.json has the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What one judge said."""

    name: str
    identity: Mapping[str, Any]
    judgments: Sequence[Judgment]


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """One trained policy, and what was measured of it."""

    method: str
    seed: int
    system: str
    settings: Mapping[str, Any]
    is_selected: bool
    kl: Estimate | None
    pairs: Mapping[str, Estimate]
    entanglement: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """All that a report is made of; the first judge's verdicts are its quality."""

    title: str
    protocol: str
    command: str
    versions: Mapping[str, str]
    prompts: Sequence[Prompt]
    methods: Mapping[str, Sequence[str]]
    """Method -> its systems, in the order of `seeds`."""
    seeds: Mapping[str, Sequence[int]]
    settings: Mapping[str, Mapping[str, Any]]
    baseline: str
    sanity: Sequence[str]
    answers: Mapping[str, Sequence[Answer]]
    judged: Sequence[Judged]
    policies: Sequence[Policy] = ()
    sweep: Sequence[SweepPoint] = ()
    saved: Saved | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def report_of(found: Gathered, start: str | None) -> Report:
    """Every number of the report but the sentences of its verdict.

    Args:
        found: what was gathered.
        start: system that all policies started from; None where nothing was trained.
    """
    prompts = {prompt.prompt_id: prompt for prompt in found.prompts}
    judges = [
        judge_numbers(
            judged.name,
            judged.identity,
            judged.judgments,
            found.answers,
            found.methods,
            found.baseline,
            prompts,
            sanity=found.sanity,
        )
        for judged in found.judged
    ]
    at, matched, points = None, list[MatchedRow](), list[FrontierPoint]()
    if start is not None and found.judged:
        at, matched, points = _frontier(found, start)
    return Report(
        schema=SCHEMA,
        title=found.title,
        protocol=found.protocol,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=found.command,
        versions=dict(found.versions),
        num_prompts=len(prompts),
        num_seeds=max((len(seeds) for seeds in found.seeds.values()), default=0),
        baseline=found.baseline,
        quality_name=f"win rate against {start or found.baseline}, judge {found.judged[0].name}",
        verdict=[],
        notes=list(found.notes),
        methods=method_numbers(
            found.answers,
            found.methods,
            found.baseline,
            seeds=found.seeds,
            settings=found.settings,
            sanity=found.sanity,
        ),
        judges=judges,
        frontier=points,
        matched_kl_at=at,
        matched_kl=matched,
        sweep=list(found.sweep),
        ranking={
            method: {name: numbers[name] for name in _RANKING if name in numbers}
            for method, numbers in _over_seeds(found.policies, "pairs").items()
        },
        displacement=_displacement(found.policies),
        entanglement=_over_seeds(found.policies, "entanglement"),
        saved=found.saved,
        examples=_examples(found),
    )


def _frontier(
    found: Gathered, start: str
) -> tuple[float | None, list[MatchedRow], list[FrontierPoint]]:
    judgments = found.judged[0].judgments
    points, measured = list[FrontierPoint](), dict[str, list[Measured]]()
    for policy in found.policies:
        wins = wins_by_prompt(judgments, policy.system, start)
        if policy.kl is None or not wins:
            continue
        points.append(
            FrontierPoint(
                method=policy.method,
                seed=policy.seed,
                settings=dict(policy.settings),
                is_selected=policy.is_selected,
                kl=policy.kl,
                quality=mean_interval(list(wins.values()), "prompts", share=True),
            )
        )
        measured.setdefault(policy.method, []).append(
            Measured(seed=policy.seed, kl=policy.kl["value"], wins=wins)
        )
    at = common_kl(measured)
    rows = []
    for method, policies in measured.items():
        quality, why_not = None, None
        if at is None:
            why_not = "a method has not moved from the start"
        else:
            wins_by_seed = wins_at(policies, at)
            if set.intersection(*map(set, wins_by_seed)):
                quality = hierarchical_interval(wins_by_seed, "prompts", share=True)
            else:
                why_not = "no prompt has a verdict for all of its policies"
        rows.append(MatchedRow(method=method, quality=quality, why_not=why_not))
    return at, rows, points


def _over_seeds(policies: Sequence[Policy], what: str) -> dict[str, dict[str, Estimate]]:
    """Method -> name -> number, over the seeds of the selected settings."""
    rows: dict[str, list[Mapping[str, Estimate]]] = {}
    for policy in policies:
        numbers: Mapping[str, Estimate] = getattr(policy, what)
        if policy.is_selected and numbers:
            rows.setdefault(policy.method, []).append(numbers)
    return {
        method: {
            name: pooled([numbers[name] for numbers in of_seeds], share=_is_share(name))
            for name in of_seeds[0]
            if all(name in numbers for numbers in of_seeds)
        }
        for method, of_seeds in rows.items()
    }


def _is_share(name: str) -> bool:
    return any(word in name for word in ("accuracy", "auc", "share"))


def pooled(of_seeds: Sequence[Estimate], *, share: bool = False) -> Estimate:
    """Mean over training seeds that were measured on the same data.

    The data's part of the interval is that of a single seed, since its errors are common to all;
    the seeds' part is t * s / sqrt(number). Both are added as in
    `prefopt.evaluation.statistics.crossed`.

    Args:
        of_seeds: one number per seed.
        share: whether it is in [0, 1]; the interval then is inside too.
    """
    first, num = of_seeds[0], len(of_seeds)
    if num == 1:
        return {**first, "unit": unit_of(first["unit"], 1)}
    values = np.array([each["value"] for each in of_seeds])
    mean = float(values.mean())
    low = high = None
    if all(each["low"] is not None for each in of_seeds):
        half = float(stats.t.isf(0.025, num - 1)) * float(values.std(ddof=1)) / math.sqrt(num)
        down = float(np.mean([each["value"] - (each["low"] or 0.0) for each in of_seeds]))
        up = float(np.mean([(each["high"] or 0.0) - each["value"] for each in of_seeds]))
        low, high = mean - math.hypot(down, half), mean + math.hypot(up, half)
        if share:
            low, high = max(0.0, low), min(1.0, high)
    return Estimate(value=mean, low=low, high=high, n=first["n"], unit=unit_of(first["unit"], num))


def _displacement(policies: Sequence[Policy]) -> list[Displacement]:
    rows = []
    for method, numbers in _over_seeds(policies, "pairs").items():
        if "drift/chosen" in numbers:
            rows.append(
                Displacement(
                    method=method,
                    chosen=numbers["drift/chosen"],
                    rejected=numbers["drift/rejected"],
                    share_both_fall=numbers["drift/share_both_fall"],
                )
            )
    return rows


def _examples(found: Gathered) -> list[Example]:
    """Prompts spread over the suite, with the first seed's first sample of every method."""
    step = max(1, len(found.prompts) // _NUM_EXAMPLES)
    first = {
        method: {a.prompt_id: a for a in found.answers[systems[0]] if a.sample == 0}
        for method, systems in found.methods.items()
    }
    base = found.methods[found.baseline][0]
    wins = {
        method: wins_by_prompt(found.judged[0].judgments, systems[0], base)
        for method, systems in found.methods.items()
        if found.judged and method != found.baseline
    }
    return [
        Example(
            prompt_id=prompt.prompt_id,
            category=prompt.category,
            turns=list(prompt.turns),
            answers=[
                ExampleAnswer(
                    method=method,
                    turns=list(answers[prompt.prompt_id].turns),
                    score=wins.get(method, {}).get(prompt.prompt_id),
                )
                for method, answers in first.items()
                if prompt.prompt_id in answers
            ],
        )
        for prompt in list(found.prompts)[::step][:_NUM_EXAMPLES]
    ]
