"""The sections of a report that say how methods do, judge by judge."""

from collections.abc import Callable, Sequence

from prefopt.evaluation.numbers import (
    BaselineNumbers,
    Estimate,
    JudgeNumbers,
    PairNumbers,
    Report,
    ScoreNumbers,
    Strength,
)
from prefopt.evaluation.report.blocks import (
    Beside,
    Block,
    Cell,
    Forest,
    Group,
    Mark,
    Named,
    Section,
    Table,
)
from prefopt.evaluation.report.cells import line, number, share, win
from prefopt.evaluation.report.judges import detectable
from prefopt.evaluation.report.pairs import ALPHA, both_ways, mean_wins
from prefopt.evaluation.report.words import DASH, p_value

_Build = Callable[[Report, JudgeNumbers], list[Block]]


def judged_sections(report: Report) -> list[Section]:
    """Win rates, strengths and scores."""
    builds: dict[str, _Build] = {
        "Against the baseline": _against_baseline,
        "Win matrix": _matrix,
        "Strengths": _strengths,
        "Scores": _scores,
    }
    return [Section(title=each, blocks=_by_judge(report, build)) for each, build in builds.items()]


def _by_judge(report: Report, build: _Build) -> list[Block]:
    """What each judge has to show; of several, those after the first are folded."""
    built = [(judge["name"], build(report, judge)) for judge in report["judges"]]
    shown = [(name, blocks) for name, blocks in built if blocks]
    if len(report["judges"]) == 1:
        return [block for _, blocks in shown for block in blocks]
    return [
        Group(title=f"By judge {name}", blocks=blocks, is_folded=i > 0)
        for i, (name, blocks) in enumerate(shown)
    ]


def _against_baseline(report: Report, judge: JudgeNumbers) -> list[Block]:
    rows = sorted(judge["against_baseline"], key=lambda row: -row["win"]["value"])
    if not rows:
        return []
    sanity = {each["name"] for each in report["methods"] if each["kind"] == "sanity"}
    caption = f"Win rate over {report['baseline']}; 50 % is no difference."
    if any(row["length_controlled"] for row in rows):
        caption += " Filled: answers as they are. Hollow: at equal lengths, LC (prefopt)."
    forest = Forest(
        caption=caption,
        rows=[(row["method"], _marks(row)) for row in rows],
        centre=0.5,
        form="share",
        muted=frozenset(sanity),
    )
    table = Table(
        head=["method", "win rate", "LC (prefopt)", "p", "p (Holm)", "outcome"],
        rows=[
            [
                Named(name=row["method"], detail="sanity row" if row["method"] in sanity else ""),
                win(row["win"], is_strong=row["outcome"] != "no difference seen"),
                share(row["length_controlled"]),
                p_value(row["p"]),
                p_value(row["p_holm"]),
                row["outcome"],
            ]
            for row in rows
        ],
    )
    return [forest, table, *line(detectable(judge))]


def _marks(row: BaselineNumbers) -> list[Mark]:
    marks = [Mark(label="win rate", estimate=row["win"])]
    if row["length_controlled"] is not None:
        estimate = row["length_controlled"]
        marks.append(Mark(label="at equal lengths", estimate=estimate, is_hollow=True))
    return marks


def _matrix(_: Report, judge: JudgeNumbers) -> list[Block]:
    pairs, order = both_ways(judge), list(mean_wins(judge))
    if not pairs:
        return []
    matrix = Table(
        caption="Win rate of the row over the column, the highest mean first. "
        "Bold: p is at most 0.05 after Holm's correction over the whole matrix.",
        head=["", *order],
        rows=[[Named(name=a), *(_pair(pairs.get((a, b))) for b in order)] for a in order],
        is_dense=True,
    )
    details = Table(
        caption=f"All {len(judge['win_matrix']):,} pairs with p-values",
        head=["pair", "win rate of the first", "p", "p (Holm)"],
        rows=[
            [
                Named(name=f"{pair['a']} over {pair['b']}"),
                _pair(pair),
                p_value(pair["p"]),
                p_value(pair["p_holm"]),
            ]
            for pair in judge["win_matrix"]
        ],
        is_folded=True,
    )
    return [matrix, details]


def _pair(pair: PairNumbers | None) -> Cell:
    return DASH if pair is None else win(pair["win"], is_strong=pair["p_holm"] <= ALPHA)


def _strengths(report: Report, judge: JudgeNumbers) -> list[Block]:
    strengths = sorted(judge["strengths"] or [], key=lambda each: each["rank"])
    if not strengths:
        return []
    forest = Forest(
        caption=f"Bradley-Terry strength above {report['baseline']}, on the logit scale, at equal "
        "lengths and slots.",
        rows=[(s["method"], [Mark(label="strength", estimate=s["logit"])]) for s in strengths],
        centre=0.0,
    )
    table = Table(
        head=["method", "rank", "could be", "strength (logit)", "expected win rate"],
        rows=[
            [
                Named(name=each["method"]),
                f"{each['rank']}",
                _ranks(each),
                number(each["logit"]),
                win(each["win_against_baseline"]),
            ]
            for each in strengths
        ],
    )
    return [Beside(blocks=[forest, table])]


def _ranks(strength: Strength) -> str:
    low, high = strength["rank_low"], strength["rank_high"]
    return f"{low}" if low == high else f"{low} to {high}"


def _scores(_: Report, judge: JudgeNumbers) -> list[Block]:
    scores = judge["scores"] or []
    if not scores:
        return []
    means = Table(
        head=["method", "mean score", "risk-averse mean"],
        rows=[
            [Named(name=each["method"]), number(each["mean"]), number(each["risk_averse"])]
            for each in scores
        ],
    )
    turns = _split("By turn", scores, [each["by_turn"] for each in scores])
    categories = _split("By category", scores, [each["by_category"] for each in scores])
    return [means, *turns, *categories]


def _split(
    caption: str, scores: Sequence[ScoreNumbers], parts: Sequence[dict[str, Estimate]]
) -> list[Block]:
    names = list(dict.fromkeys(name for part in parts for name in part))
    if len(names) < 2:
        # One part is the whole.
        return []
    rows = [
        [Named(name=score["method"]), *(number(part.get(name)) for name in names)]
        for score, part in zip(scores, parts, strict=True)
    ]
    return [Table(caption=caption, head=["method", *names], rows=rows)]
