"""AlpacaEval's numbers: how often a system's answers are preferred to the baseline's."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefopt.errors import UserError
from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.protocols.games import Games, games_against, judge_of, win_of
from prefopt.evaluation.statistics.intervals import mean_interval
from prefopt.evaluation.statistics.official_length_control import (
    Gamed,
    official_length_controlled,
)
from prefopt.evaluation.types import Answer, Judgment, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class AlpacaEvalRow:
    """One system, in the columns of AlpacaEval's leaderboard.csv and with an interval.

    As there, rates and the standard error are in percent. A prompt counts where all its judgments
    are there.
    """

    title: str
    """Which protocol and which judge: numbers of other judges are not comparable."""
    system: str
    baseline: str
    win: Estimate
    """Probability in [0, 1] that the judge prefers the system."""
    win_rate: float
    standard_error: float | None
    """Of the mean over prompts; None for one prompt."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    """Wins and half of the draws."""
    avg_length: int | None
    """Characters per answer, rounded down; None where the answers are not given."""
    num_missing: int
    """Prompts without a judgment that counts; the official program leaves them out unsaid."""
    official_lc: Estimate | None
    """AlpacaEval's own length-controlled rate, in [0, 1]; None where its data is not given."""


def title(judge: str) -> str:
    """What tables are called."""
    return f"AlpacaEval protocol with judge {judge}"


def alpaca_eval_rows(
    prompts: Sequence[Prompt],
    judgments: Sequence[Judgment],
    baseline: str,
    answers: Mapping[str, Sequence[Answer]] | None = None,
    gamed: Gamed | None = None,
) -> list[AlpacaEvalRow]:
    """A row per system that was judged against the baseline, in order of first appearance.

    Args:
        prompts: all that should have been judged.
        judgments: of one judge.
        baseline: the system that all are compared with.
        answers: by system, for the average length; those of the baseline too for the official LC.
        gamed: AlpacaEval's data for that.

    Raises:
        UserError: if there are several judges, nothing was judged against the baseline, or no
            judgment of a system counts.
    """
    judge = judge_of(judgments)
    known = {prompt.prompt_id for prompt in prompts}
    against = games_against([each for each in judgments if each.prompt_id in known], baseline)
    if not against:
        systems = sorted({each.system for each in judgments})
        raise UserError(
            f"nothing was judged against {baseline}. Name a baseline among {', '.join(systems)}."
        )
    return [
        _row(system, baseline, judge, prompts, games, answers or {}, gamed)
        for system, games in against.items()
    ]


def _row(
    system: str,
    baseline: str,
    judge: str,
    prompts: Sequence[Prompt],
    games: Mapping[tuple[str, int], Games],
    answers: Mapping[str, Sequence[Answer]],
    gamed: Gamed | None,
) -> AlpacaEvalRow:
    own = answers.get(system)
    wins = _wins(system, games)
    if not wins:
        raise UserError(f"no judgment of {system} against {baseline} counts. Ask the judge again.")
    values = list(wins.values())
    num = len(values)
    num_wins = sum(value > 0.5 for value in values)
    num_draws = sum(value == 0.5 for value in values)
    error = statistics.stdev(values) / num**0.5 if num > 1 else None
    return AlpacaEvalRow(
        title=title(judge),
        system=system,
        baseline=baseline,
        win=mean_interval(values, "prompts", clusters=list(wins), share=True),
        win_rate=100 * statistics.fmean(values),
        standard_error=None if error is None else 100 * error,
        n_wins=num_wins,
        n_wins_base=num - num_wins - num_draws,
        n_draws=num_draws,
        n_total=num,
        discrete_win_rate=100 * (num_wins + num_draws / 2) / num,
        avg_length=int(statistics.fmean(each.num_characters for each in own)) if own else None,
        num_missing=len(prompts) - num,
        official_lc=None
        if gamed is None
        else _official_lc(system, baseline, prompts, wins, answers, gamed),
    )


def _official_lc(
    system: str,
    baseline: str,
    prompts: Sequence[Prompt],
    wins: Mapping[str, float],
    answers: Mapping[str, Sequence[Answer]],
    gamed: Gamed,
) -> Estimate:
    for name in (baseline, system):
        if name not in answers:
            raise UserError(f"the official LC needs the lengths of {name}. Give its --answers.")
    missing = [prompt.prompt_id for prompt in prompts if prompt.prompt_id not in wins]
    if missing:
        raise UserError(
            f"the official LC needs all prompts, and {len(missing)} have no judgment of {system}. "
            "Ask the judge again."
        )
    lengths = [
        {each.prompt_id: each.num_characters for each in answers[name]}
        for name in (baseline, system)
    ]
    order = [prompt.prompt_id for prompt in prompts]
    deltas = np.array([lengths[0][each] - lengths[1][each] for each in order], dtype=np.float64)
    return official_length_controlled(np.array([wins[each] for each in order]), deltas, gamed)


def _wins(system: str, games: Mapping[tuple[str, int], Games]) -> dict[str, float]:
    """Mean over the samples of each prompt; a prompt that lacks a judgment is not among them."""
    by_prompt: dict[str, list[float | None]] = {}
    for (prompt_id, _), played in games.items():
        by_prompt.setdefault(prompt_id, []).append(win_of(played, system))
    found = {}
    for prompt_id, values in by_prompt.items():
        whole = [value for value in values if value is not None]
        if len(whole) == len(values):
            found[prompt_id] = statistics.fmean(whole)
    return found
