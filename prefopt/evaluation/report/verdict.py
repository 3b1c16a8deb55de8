"""The report in sentences: no claim without a number, its interval and what it is over."""

from collections.abc import Iterator, Sequence

from prefopt.evaluation.numbers import (
    BaselineNumbers,
    Estimate,
    FrontierPoint,
    JudgeNumbers,
    PairNumbers,
    Report,
)
from prefopt.evaluation.report.pairs import ALPHA, both_ways, mean_wins
from prefopt.evaluation.report.verdict_judges import disagreements, warnings
from prefopt.evaluation.report.words import (
    Counted,
    interval,
    listed,
    over,
    p_is,
    points,
    value,
    whole,
)

_UNEQUAL_KL = 1.5
"""From this ratio of the highest to the lowest KL on, methods are not compared at equal KL."""
_MUCH = 0.05
"""Share of answers that are cut or empty from which the verdict says so."""
_RANKING = "ranking_accuracy"


def verdict(report: Report) -> list[str]:
    """Plain sentences, the most important first.

    Outcomes and order are those of the first judge; others confirm or contradict it.
    """
    return list(_sentences(report))


def _sentences(report: Report) -> Iterator[str]:
    kinds = {each["name"]: each["kind"] for each in report["methods"]}
    judges = report["judges"]
    sane = {name for name, kind in kinds.items() if kind != "sanity"}
    if judges:
        yield from _outcomes(report, judges[0], sane)
        yield from _best(report, judges[0], sane)
    yield from _seeds(report)
    for judge in judges:
        yield from warnings(judge, report["baseline"], sane)
    yield from disagreements(judges, report["baseline"], sane)
    if judges:
        yield from _length(report, judges[0], sane)
    yield from _cut(report, sane)
    yield from _kl(report)
    if judges:
        yield from _proxy(report, judges[0], sane)


def _outcomes(report: Report, judge: JudgeNumbers, sane: set[str]) -> Iterator[str]:
    rows = [row for row in judge["against_baseline"] if row["method"] in sane]
    rows.sort(key=lambda row: -row["win"]["value"])
    baseline, by = report["baseline"], f"by judge {judge['name']}"
    for outcome, lead in (("better", "Better than"), ("worse", "Worse than")):
        found = [row for row in rows if row["outcome"] == outcome]
        if found:
            yield f"{lead} {baseline}, {by}: {_clauses(found)}."
    same = [row for row in rows if row["outcome"] == "no difference seen"]
    if same:
        names = listed([row["method"] for row in same], "or")
        yield (
            f"No difference seen between {baseline} and {names}, {by}: "
            f"{_clauses(same)}{_unnoticed(judge)}."
        )


def _clauses(rows: Sequence[BaselineNumbers]) -> str:
    """`dpo wins 62.3 % [58.1, 66.0], Holm p < 0.001; ... (n = 805 prompts each)`."""
    counted = Counted(row["win"] for row in rows)
    clauses = [
        f"{row['method']} wins {counted.number(row['win'])}, Holm p {p_is(row['p_holm'])}"
        for row in rows
    ]
    return f"{'; '.join(clauses)}{counted.end}"


def _unnoticed(judge: JudgeNumbers) -> str:
    detectable = judge["detectable"]
    if detectable is None:
        return ""
    least = detectable["all_tests" if detectable["num_tests"] > 1 else "one_test"]
    return f"; a difference below {points(least)} would not have been noticed (80 % power)"


def _best(report: Report, judge: JudgeNumbers, sane: set[str]) -> Iterator[str]:
    """The method with the highest mean win rate, and which others it is not told apart from."""
    pairs = {(a, b): pair for (a, b), pair in both_ways(judge).items() if a in sane and b in sane}
    means = mean_wins({**judge, "win_matrix": [pairs[key] for key in pairs if key[0] < key[1]]})
    if len(means) < 3:
        return
    leader, by = next(iter(means)), f"by judge {judge['name']}"
    rivals = [pairs[leader, name] for name in means if (leader, name) in pairs]
    above = [pair for pair in rivals if _is_significant(pair) and pair["win"]["value"] < 0.5]
    equal = [pair for pair in rivals if not _is_significant(pair)]
    if above:
        yield (
            f"No single best, {by}: {leader} has the highest mean win rate, but it loses to "
            f"{_against(above)}."
        )
    elif equal:
        names = listed([leader, *(pair["b"] for pair in equal)])
        yield f"Not told apart at the top, {by}: {names}; {leader} wins {_against(equal)}."
    else:
        closest = min(rivals, key=lambda pair: pair["win"]["value"])
        yield f"Best of {len(means)}, {by}: {leader} beats every other; closest, it wins " + (
            f"{_against([closest])}."
        )


def _is_significant(pair: PairNumbers) -> bool:
    return pair["p_holm"] <= ALPHA


def _against(pairs: Sequence[PairNumbers]) -> str:
    """`51.0 % [47.1, 54.8] against ipo (Holm p = 0.62), ... (n = 805 prompts each)`."""
    counted = Counted(pair["win"] for pair in pairs)
    clauses = [
        f"{counted.number(pair['win'])} against {pair['b']} (Holm p {p_is(pair['p_holm'])})"
        for pair in pairs
    ]
    return f"{', '.join(clauses)}{counted.end}"


def _seeds(report: Report) -> Iterator[str]:
    if report["num_seeds"] == 1:
        yield "One seed: conclusions are about these checkpoints, not about the methods."
        return
    single = [
        each["name"]
        for each in report["methods"]
        if each["kind"] == "candidate" and len(each["seeds"]) == 1
    ]
    if single:
        yield (
            f"One seed of {listed(single)}: what is said of it is about that checkpoint, not about "
            "the method."
        )


def _length(report: Report, judge: JudgeNumbers, sane: set[str]) -> Iterator[str]:
    """Where the answers as they are and answers of equal length do not say the same."""
    baseline = report["baseline"]
    ratios = {each["name"]: each["length_ratio"] for each in report["methods"]}
    leads = {
        "reverses": "Length reverses the outcome against",
        "explains": "At equal lengths no difference is left to",
        "hides": "At equal lengths a difference appears to",
    }
    found: dict[str, list[str]] = {}
    for row in judge["against_baseline"]:
        controlled = row["length_controlled"]
        if row["method"] not in sane or controlled is None:
            continue
        raw, equal = side(row["win"]), side(controlled)
        if raw == equal:
            continue
        kind = "reverses" if raw and equal else "explains" if raw else "hides"
        ratio = ratios[row["method"]]
        counted = Counted([row["win"], controlled, *([ratio] if ratio else [])])
        length = f"; answers {counted.number(ratio, 'number')} times as long" if ratio else ""
        found.setdefault(kind, []).append(
            f"{row['method']} wins {counted.number(row['win'])} as it is and "
            f"{counted.number(controlled)} at equal lengths{length}{counted.end}"
        )
    for kind, lead in leads.items():
        if kind in found:
            yield f"{lead} {baseline}, by judge {judge['name']}: {'; '.join(found[kind])}."


def side(win: Estimate) -> int:
    """1 where a whole interval lies above 1/2, -1 below, 0 where it holds 1/2 or is absent."""
    if win["low"] is not None and win["low"] > 0.5:
        return 1
    return -1 if win["high"] is not None and win["high"] < 0.5 else 0


def _cut(report: Report, sane: set[str]) -> Iterator[str]:
    methods = [each for each in report["methods"] if each["name"] in sane]
    cut = [(each["name"], each["share_cut"]) for each in methods]
    empty = [(each["name"], each["share_empty"]) for each in methods]
    for lead, shares in (("Answers cut by the limit of tokens", cut), ("Empty answers", empty)):
        many = [f"{whole(share, 'share')} of {name}" for name, share in shares if _is_much(share)]
        if many:
            yield f"{lead}: {'; '.join(many)}."


def _is_much(share: Estimate) -> bool:
    return share["value"] >= _MUCH


def _kl(report: Report) -> Iterator[str]:
    selected = [each for each in report["frontier"] if each["is_selected"]]
    selected.sort(key=lambda each: each["kl"]["value"])
    if len({each["method"] for each in selected}) < 2:
        return
    low, high = selected[0], selected[-1]
    is_far = high["kl"]["value"] > _UNEQUAL_KL * max(low["kl"]["value"], 0.0)
    if is_far and _is_below(low["kl"], high["kl"]):
        yield f"Methods are compared at unequal KL: from {_at(low)} to {_at(high)}."
    yield from _matched(report)


def _matched(report: Report) -> Iterator[str]:
    rows = [(row["quality"], row["method"]) for row in report["matched_kl"] if row["quality"]]
    if report["matched_kl_at"] is None or len(rows) < 2:
        return
    rows.sort(key=lambda row: -row[0]["value"])
    (best, first), (worst, last) = rows[0], rows[-1]
    yield (
        f"At an equal KL of {report['matched_kl_at']:.3g} nats: {report['quality_name']} goes from "
        f"{whole(worst)} of {last} to {whole(best)} of {first}."
    )


def _is_below(one: Estimate, other: Estimate) -> bool:
    """Whether the intervals do not even touch."""
    top, bottom = one["high"], other["low"]
    return top is not None and bottom is not None and top < bottom


def _at(point: FrontierPoint) -> str:
    kl = point["kl"]
    number = f"{value(kl)} nats {interval(kl)} ({over(kl)})"
    return f"{number} of {point['method']} with seed {point['seed']}"


def _proxy(report: Report, judge: JudgeNumbers, sane: set[str]) -> Iterator[str]:
    """Said where the method that ranks best clearly wins less than the one that wins most."""
    accuracies = {
        method: numbers[_RANKING]
        for method, numbers in report["ranking"].items()
        if _RANKING in numbers and method in sane
    }
    wins = {row["method"]: row["win"] for row in judge["against_baseline"]}
    known = [method for method in accuracies if method in wins]
    if len(known) < 2:
        return
    ranks_best = max(known, key=lambda method: accuracies[method]["value"])
    wins_most = max(known, key=lambda method: wins[method]["value"])
    if not _is_below(wins[ranks_best], wins[wins_most]):
        return
    said = [
        f"{method} with {whole(accuracies[method], 'share')} wins "
        f"{whole(wins[method], 'share')} against {report['baseline']}"
        for method in (ranks_best, wins_most)
    ]
    yield f"Ranking accuracy is no proxy for winning: {said[0]}; {said[1]}."
