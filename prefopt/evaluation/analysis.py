"""From judgments to the numbers of a report.

Both orders of a pair are averaged before anything is decided, everything on one prompt is one unit,
and a method's training seeds are a level of their own. What a judge did not answer is missing; it
is counted, and never a tie.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prefopt.evaluation.analysis_methods import longest_answers, method_numbers, null_answers
from prefopt.evaluation.analysis_pairs import (
    Comparison,
    comparisons,
    conflict_share,
    corrected,
    intransitive_share,
    order_numbers,
    win_matrix,
)
from prefopt.evaluation.analysis_scores import score_means, score_numbers
from prefopt.evaluation.analysis_strengths import (
    battles_of,
    length_controlled,
    strength_rows,
    strengths,
)
from prefopt.evaluation.analysis_table import (
    Entrants,
    coverage_of,
    last_of_each,
    pairs_of,
    scores_of,
)
from prefopt.evaluation.numbers import BaselineNumbers, Detectable, JudgeNumbers, Outcome
from prefopt.evaluation.statistics.battles import Battles
from prefopt.evaluation.statistics.multiplicity import minimum_detectable_difference
from prefopt.evaluation.statistics.strengths import LENGTH, SLOT
from prefopt.evaluation.types import Answer, Judgment, Prompt

__all__ = ["judge_numbers", "longest_answers", "method_numbers", "null_answers"]

_LEVEL = 0.05


def judge_numbers(
    name: str,
    identity: Mapping[str, Any],
    judgments: Sequence[Judgment],
    answers: Mapping[str, Sequence[Answer]],
    methods: Mapping[str, Sequence[str]],
    baseline: str,
    prompts: Mapping[str, Prompt],
    *,
    sanity: Collection[str] = (),
    note: str | None = None,
    seed: int = 0,
) -> JudgeNumbers:
    """Everything that one judge says about methods.

    Seeds meet as they were judged: seed k of one with seed k of the other, one with all, or all
    with all. Strengths and length control use seed k with seed k only. Sanity rows take part in the
    win matrix and against the baseline, with Holm families of their own; strengths, length and
    slot effects are of the baseline and the candidates. What could not be told is None, and the
    note says why.

    Args:
        name: of the judge.
        identity: of the judge, as plain values.
        judgments: of one judge; a later one of the same question replaces the earlier, and those of
            other systems or prompts are left aside.
        answers: system -> its answers, for their lengths.
        methods: method -> its systems, one per training seed.
        baseline: the method that the others are compared with.
        prompts: prompt_id -> prompt, those that the report is about.
        sanity: methods that show what a judge can be fooled by.
        note: what to say about the judge.
        seed: of bootstraps and random flips.

    Raises:
        UserError: if methods do not fit together, or an answer that was judged is not there.
    """
    entrants, ids = Entrants.of(methods, baseline), list(prompts)
    known = last_of_each(judgments, entrants, ids)
    pairs, scores = pairs_of(known, entrants, ids), scores_of(known, entrants, ids)
    made = comparisons(pairs, entrants, len(ids), sanity, seed)
    battles = battles_of(pairs, entrants, answers, ids)
    notes = [] if note is None else [note]
    fitted = strengths(battles, baseline, sanity, notes)
    means = score_means(scores)
    against = [
        each.turned() if each.a == baseline else each
        for each in made
        if baseline in (each.a, each.b)
    ]
    return JudgeNumbers(
        name=name,
        identity=dict(identity),
        coverage=coverage_of(known),
        order=order_numbers(pairs, seed),
        win_matrix=win_matrix(made, sanity),
        against_baseline=_against_baseline(against, battles, sanity, notes, seed),
        strengths=None if fitted is None else strength_rows(fitted),
        length_effect=None if fitted is None else fitted.effect(LENGTH),
        slot_effect=None if fitted is None else fitted.effect(SLOT),
        scores=score_numbers(
            scores, means, entrants, [each.category for each in prompts.values()], seed
        ),
        intransitive_share=intransitive_share(made, entrants.methods, len(ids), seed),
        conflict_share=conflict_share(pairs, scores, means[:, 0], seed),
        detectable=_detectable([each for each in against if each.a not in sanity]),
        note=" ".join(notes) or None,
    )


def _against_baseline(
    against: Sequence[Comparison],
    battles: Battles,
    sanity: Collection[str],
    notes: list[str],
    seed: int,
) -> list[BaselineNumbers]:
    """One row per comparison, whose b is the baseline."""
    return [
        BaselineNumbers(
            method=each.a,
            win=each.win,
            win_if_missing_lost=each.if_missing_lost,
            win_if_missing_won=each.if_missing_won,
            length_controlled=length_controlled(battles, each.a, each.b, notes, seed),
            p=each.p,
            p_holm=p_holm,
            outcome=_outcome(each.win["value"], p_holm),
        )
        for each, p_holm in zip(against, corrected(against, sanity), strict=True)
    ]


def _outcome(win: float, p_holm: float) -> Outcome:
    if p_holm >= _LEVEL:
        return "no difference seen"
    return "better" if win > 0.5 else "worse"


def _detectable(against: Sequence[Comparison]) -> Detectable | None:
    """By the least certain of the candidates' win rates; None if nothing tells how certain."""
    spreads = [each.spread for each in against if each.spread is not None]
    widest = max(spreads, key=lambda spread: spread.standard_error, default=None)
    if widest is None or widest.standard_error == 0:
        return None
    one, every = (
        minimum_detectable_difference(widest.standard_error, num_tests, df=widest.df)
        for num_tests in (1, len(against))
    )
    return Detectable(
        standard_error=widest.standard_error,
        one_test=one,
        num_tests=len(against),
        all_tests=every,
    )
