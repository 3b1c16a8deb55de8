"""MT-Bench's numbers: scores by turn and category, and wins of one system over another."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefopt.errors import UserError
from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.protocols.games import (
    Games,
    games_against,
    judge_of,
    mean_score,
    win_of,
    winner_of,
)
from prefopt.evaluation.statistics.intervals import mean_interval
from prefopt.evaluation.types import Judgment, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class MtBenchScores:
    """A judge's scores of one system."""

    title: str
    system: str
    overall: Estimate
    """Mean over questions of the mean over their turns."""
    by_turn: dict[int, Estimate]
    by_category: dict[str, Estimate]
    mean_of_rows: float
    """Over all scores alike, as FastChat's show_result has it; differs where some are missing."""
    num_missing: dict[int, int]
    """By turn, questions without a score; FastChat leaves them out unsaid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MtBenchPairs:
    """One system against another, both orders of each question and turn."""

    title: str
    system: str
    baseline: str
    win: Estimate
    """Probability that the system's answer is better, both orders averaged, ties half."""
    by_turn: dict[int, Estimate]
    by_category: dict[str, Estimate]
    num_wins: int
    """By FastChat's rule: both orders name the system."""
    num_losses: int
    num_ties: int
    """By FastChat's rule: a tie in the first order, or two orders that do not agree."""
    win_rate_adjusted: float
    """(wins + ties / 2) / all, by FastChat's rule, in [0, 1]."""
    num_missing: int
    """Questions and turns that lack one of the orders, or a reply to it."""


@dataclass(slots=True)
class _Values:
    """Numbers with the prompt, turn and category that each belongs to."""

    values: list[float] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, value: float, prompt: Prompt, turn: int) -> None:
        self.values.append(value)
        self.prompts.append(prompt)
        self.turns.append(turn)

    def estimate(
        self, *, turn: int | None = None, category: str | None = None, share: bool = False
    ) -> Estimate:
        """Mean over questions, of those with that turn and category."""
        chosen = [
            (value, prompt.prompt_id)
            for value, prompt, at in zip(self.values, self.prompts, self.turns, strict=True)
            if turn in (None, at) and category in (None, prompt.category)
        ]
        values, clusters = zip(*chosen, strict=True)
        return mean_interval(values, "questions", clusters=clusters, share=share)

    def by_turn(self, *, share: bool = False) -> dict[int, Estimate]:
        return {turn: self.estimate(turn=turn, share=share) for turn in sorted(set(self.turns))}

    def by_category(self, *, share: bool = False) -> dict[str, Estimate]:
        names = dict.fromkeys(prompt.category for prompt in self.prompts if prompt.category)
        return {name: self.estimate(category=name, share=share) for name in names}


def title(judge: str) -> str:
    """What tables are called."""
    return f"MT-Bench protocol with judge {judge}"


def mt_bench_scores(
    prompts: Sequence[Prompt], judgments: Sequence[Judgment]
) -> list[MtBenchScores]:
    """A row per system that was scored, in order of first appearance.

    Args:
        prompts: all questions, each turn of which should have been scored.
        judgments: of one judge; pairs are passed over.

    Raises:
        UserError: if there are several judges, no scores, or none of a system that counts.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    scores = [each for each in judgments if each.kind == "score" and each.prompt_id in by_id]
    judge = judge_of(scores)
    return [
        _scores_of(system, judge, prompts, [each for each in scores if each.system == system])
        for system in dict.fromkeys(each.system for each in scores)
    ]


def mt_bench_pairs(
    prompts: Sequence[Prompt], judgments: Sequence[Judgment], baseline: str
) -> list[MtBenchPairs]:
    """A row per system that was judged against the baseline, in order of first appearance.

    Args:
        prompts: all questions, each turn of which should have been judged.
        judgments: of one judge; scores are passed over.
        baseline: the system that all are compared with.

    Raises:
        UserError: if there are several judges, or no pair of a system counts.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    pairs = [each for each in judgments if each.kind == "pair" and each.prompt_id in by_id]
    judge = judge_of(pairs)
    num_turns = max(len(prompt.turns) for prompt in prompts)
    by_turn = {turn: games_against(pairs, baseline, turn=turn) for turn in range(1, num_turns + 1)}
    systems = dict.fromkeys(system for against in by_turn.values() for system in against)
    if not systems:
        raise UserError(f"nothing was judged against {baseline}. Name another baseline.")
    return [
        _pairs_of(
            system,
            baseline,
            judge,
            by_id,
            {turn: against.get(system, {}) for turn, against in by_turn.items()},
        )
        for system in systems
    ]


def _scores_of(
    system: str, judge: str, prompts: Sequence[Prompt], judgments: Sequence[Judgment]
) -> MtBenchScores:
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    found = _Values()
    for judgment in judgments:
        score = mean_score(judgment)
        if score is not None:
            found.add(score, by_id[judgment.prompt_id], judgment.turn)
    if not found.values:
        raise UserError(f"no score of {system} counts. Ask the judge again.")
    scored = Counter(
        turn
        for turn, _ in {(t, p.prompt_id) for t, p in zip(found.turns, found.prompts, strict=True)}
    )
    wanted = Counter(turn for prompt in prompts for turn in range(1, len(prompt.turns) + 1))
    return MtBenchScores(
        title=title(judge),
        system=system,
        overall=found.estimate(),
        by_turn=found.by_turn(),
        by_category=found.by_category(),
        mean_of_rows=statistics.fmean(found.values),
        num_missing={turn: num - scored[turn] for turn, num in sorted(wanted.items())},
    )


def _pairs_of(
    system: str,
    baseline: str,
    judge: str,
    by_id: dict[str, Prompt],
    by_turn: dict[int, dict[tuple[str, int], Games]],
) -> MtBenchPairs:
    found = _Values()
    counts: Counter[str] = Counter()
    for turn, games in by_turn.items():
        for (prompt_id, _), played in games.items():
            win = win_of(played, system)
            if win is None or len(played) < 2:
                continue
            found.add(win, by_id[prompt_id], turn)
            counts[_winner_by_both(played)] += 1
    if not found.values:
        raise UserError(f"no pair of {system} and {baseline} counts. Ask the judge again.")
    judged = {(t, p.prompt_id) for t, p in zip(found.turns, found.prompts, strict=True)}
    num_wins, num_losses = counts[system], counts[baseline]
    num_ties = counts["tie"]
    return MtBenchPairs(
        title=title(judge),
        system=system,
        baseline=baseline,
        win=found.estimate(share=True),
        by_turn=found.by_turn(share=True),
        by_category=found.by_category(share=True),
        num_wins=num_wins,
        num_losses=num_losses,
        num_ties=num_ties,
        win_rate_adjusted=(num_wins + num_ties / 2) / (num_wins + num_losses + num_ties),
        num_missing=sum(len(prompt.turns) for prompt in by_id.values()) - len(judged),
    )


def _winner_by_both(games: Games) -> str:
    """FastChat's rule (`show_result.py`): who wins in both orders, else a tie."""
    winners = {winner_of(game) for game in games}
    return winners.pop() if len(winners) == 1 else "tie"
