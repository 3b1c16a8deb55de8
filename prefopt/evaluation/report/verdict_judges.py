"""Sentences on what is wrong with a judge, and on where judges contradict each other."""

from collections.abc import Iterator, Sequence

from prefopt.evaluation.numbers import BaselineNumbers, Estimate, JudgeNumbers, OrderNumbers
from prefopt.evaluation.report.judges import answered
from prefopt.evaluation.report.words import Counted, p_is, whole

_FAR_FROM_HALF = 0.05
_LOW_CONSISTENCY = 0.75
_LOW_COVERAGE = 0.99
_LOW_MASS = 0.9


def warnings(judge: JudgeNumbers, baseline: str, sane: set[str]) -> Iterator[str]:
    """What to bear in mind about one judge, the gravest first.

    Args:
        judge: its numbers.
        baseline: name of the baseline.
        sane: methods that are no sanity rows.
    """
    fooled = [
        _wins(row)
        for row in judge["against_baseline"]
        if row["method"] not in sane and row["outcome"] == "better"
    ]
    if fooled:
        yield (
            f"Judge {judge['name']} can be fooled: it prefers sanity rows to {baseline}: "
            f"{'; '.join(fooled)}."
        )
    if judge["coverage"]["share"] < _LOW_COVERAGE:
        yield f"Judge {judge['name']} leaves questions open: it answered {answered(judge)}."
    if judge["order"] is not None:
        yield from _order(judge["name"], judge["order"])


def _order(name: str, order: OrderNumbers) -> Iterator[str]:
    rate, consistent, mass = (
        order["first_slot_rate"],
        order["consistent_share"],
        order["label_mass"],
    )
    if abs(rate["value"] - 0.5) >= _FAR_FROM_HALF and not _holds(rate, 0.5):
        slot = "first" if rate["value"] > 0.5 else "second"
        yield (
            f"Judge {name} favours the {slot} slot: the first one wins {whole(rate, 'share')} "
            "instead of 50 %; win rates average both orders."
        )
    if consistent["value"] < _LOW_CONSISTENCY:
        yield (
            f"Judge {name} contradicts itself: its verdict is the same in both orders in "
            f"{whole(consistent, 'share')}."
        )
    if mass is not None and mass["value"] < _LOW_MASS:
        yield (
            f"Judge {name} often says something else than a verdict: labels have a probability of "
            f"{whole(mass, 'share')}."
        )


def disagreements(judges: Sequence[JudgeNumbers], baseline: str, sane: set[str]) -> Iterator[str]:
    """Where a later judge comes to another outcome than the first, opposite ones first."""
    if not judges:
        return
    first = {row["method"]: row for row in judges[0]["against_baseline"] if row["method"] in sane}
    for other in judges[1:]:
        rows = [
            (first[row["method"]], row)
            for row in other["against_baseline"]
            if row["method"] in first and row["outcome"] != first[row["method"]]["outcome"]
        ]
        opposite = [
            pair for pair in rows if {each["outcome"] for each in pair} == {"better", "worse"}
        ]
        partly = [pair for pair in rows if pair not in opposite]
        names = f"Judges {judges[0]['name']} and {other['name']}"
        if opposite:
            yield f"{names} contradict each other against {baseline}: {_sides(opposite)}."
        if partly:
            yield f"{names} do not both see a difference to {baseline}: {_sides(partly)}."


def _sides(pairs: Sequence[tuple[BaselineNumbers, BaselineNumbers]]) -> str:
    """`dpo wins 62.3 % [58.1, 66.0] (better) and 48.0 % [44.2, 52.1] (worse); ...`."""
    counted = Counted(row["win"] for pair in pairs for row in pair)
    clauses = [
        f"{one['method']} wins {counted.number(one['win'])}, {one['outcome']}, and "
        f"{counted.number(other['win'])}, {other['outcome']}"
        for one, other in pairs
    ]
    return f"{'; '.join(clauses)}{counted.end}"


def _wins(row: BaselineNumbers) -> str:
    return f"{row['method']} wins {whole(row['win'], 'share')}, Holm p {p_is(row['p_holm'])}"


def _holds(estimate: Estimate, number: float) -> bool:
    low, high = estimate["low"], estimate["high"]
    return low is not None and high is not None and low <= number <= high
