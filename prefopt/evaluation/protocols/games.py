"""Judgments of pairs put together: the orders of one pair, and who won."""

from collections.abc import Iterable, Sequence

from prefopt.errors import UserError
from prefopt.evaluation.generate.base import Key
from prefopt.evaluation.types import Judgment

Games = tuple[Judgment, ...]
"""Judgments of the same two answers, one or both orders."""


def games_against(
    judgments: Iterable[Judgment], baseline: str, turn: int = 1
) -> dict[str, dict[Key, Games]]:
    """By system, by prompt and sample: its games with the baseline about one turn."""
    found: dict[str, dict[Key, Games]] = {}
    for judgment in judgments:
        if judgment.kind != "pair" or judgment.turn != turn:
            continue
        sides = (judgment.system, judgment.opponent)
        if baseline not in sides:
            continue
        system = judgment.opponent if judgment.system == baseline else judgment.system
        assert system is not None
        games = found.setdefault(system, {})
        key = (judgment.prompt_id, judgment.sample)
        games[key] = (*games.get(key, ()), judgment)
    return found


def judge_of(judgments: Sequence[Judgment]) -> str:
    """The name of the one judge.

    Raises:
        UserError: if there is none or several.
    """
    names = sorted({judgment.judge for judgment in judgments})
    if len(names) != 1:
        found = ", ".join(names) or "nobody"
        raise UserError(f"a table is of one judge, and the judgments are of {found}. Part them.")
    return names[0]


def win_of(games: Sequence[Judgment], system: str) -> float | None:
    """Probability that a system's answer is better, averaged over orders; ties count half.

    None where a judgment is missing: one order alone would carry the judge's slot bias.
    """
    if not games or not all(game.is_ok for game in games):
        return None
    wins = [game.win if game.system == system else _second_win(game) for game in games]
    return sum(wins) / len(wins)


def mean_score(judgment: Judgment) -> float | None:
    """Mean of a judge's distribution over its levels; None where the judgment is missing."""
    if not judgment.is_ok:
        return None
    pairs = zip(judgment.levels, judgment.reply.probs, strict=True)
    return sum(level * prob for level, prob in pairs)


def winner_of(judgment: Judgment) -> str:
    """The likelier side's system, or `tie`, or `error` where the judgment is missing."""
    if not judgment.is_ok:
        return "error"
    first, second, tie = judgment.reply.probs
    if first == second or tie >= max(first, second):
        return "tie"
    assert judgment.opponent is not None
    return judgment.system if first > second else judgment.opponent


def _second_win(game: Judgment) -> float:
    _, second, tie = game.reply.probs
    return second + tie / 2
