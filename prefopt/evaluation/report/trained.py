"""The sections of a report on the trained policies: KL, log-probs, sweep, lengths."""

from prefopt.diagnostics.report_page import EXPLANATIONS
from prefopt.evaluation.numbers import Estimate, Report
from prefopt.evaluation.report import words
from prefopt.evaluation.report.blocks import Block, Lines, Named, Plot, Section, Table
from prefopt.evaluation.report.cells import number, share
from prefopt.evaluation.report.plots import frontier
from prefopt.evaluation.report.words import DASH

_KINDS = {"baseline": "baseline", "candidate": "", "sanity": "sanity row"}


def trained_sections(report: Report) -> list[Section]:
    """What does not come from a judge, and the frontier."""
    return [
        Section(title="Quality against KL", blocks=_frontier(report)),
        Section(title="Displacement", blocks=_displacement(report)),
        Section(title="Entanglement", blocks=_named_numbers(report["entanglement"])),
        Section(title="Ranking accuracy", blocks=_named_numbers(report["ranking"])),
        Section(title="Sweep", blocks=_sweep(report)),
        Section(title="Lengths", blocks=_lengths(report)),
    ]


def _frontier(report: Report) -> list[Block]:
    return [*_points(report), *_matched(report)]


def _points(report: Report) -> list[Block]:
    points = report["frontier"]
    if not points:
        return []
    caption = (
        f"Each point is a trained policy: {report['quality_name']} against its KL from the start, "
        "on its own samples, with 95 % intervals."
    )
    if not all(each["is_selected"] for each in points):
        caption += " Full: settings that were selected. Pale: the rest of the sweep."
    table = Table(
        caption=f"All {len(points):,} points",
        head=["method", "seed", "settings", "KL, nats", report["quality_name"], "selected"],
        rows=[
            [
                Named(name=each["method"]),
                f"{each['seed']}",
                words.settings(each["settings"]) or DASH,
                number(each["kl"]),
                number(each["quality"], is_strong=each["is_selected"]),
                "yes" if each["is_selected"] else "no",
            ]
            for each in points
        ],
        is_folded=True,
    )
    return [Plot(caption=caption, drawn=frontier(report)), table]


def _matched(report: Report) -> list[Block]:
    at, rows = report["matched_kl_at"], report["matched_kl"]
    if at is None or not rows:
        return []
    known = [(row["method"], row["quality"]) for row in rows if row["quality"] is not None]
    known.sort(key=lambda item: -item[1]["value"])
    unknown = [(row["method"], row["why_not"] or DASH) for row in rows if row["quality"] is None]
    table = Table(
        caption=f"At the same KL of {at:.3g} nats",
        head=["method", report["quality_name"]],
        rows=[[Named(name=name), number(quality)] for name, quality in known]
        + [[Named(name=name, detail=f"not matched: {why}"), DASH] for name, why in unknown],
    )
    return [table]


def _displacement(report: Report) -> list[Block]:
    if not report["displacement"]:
        return []
    said = (
        "Change of the log-prob of held-out responses since the start, in nats. A margin can grow "
        "while both fall."
    )
    table = Table(
        head=["method", "chosen", "rejected", "both fall"],
        rows=[
            [
                Named(name=each["method"]),
                number(each["chosen"]),
                number(each["rejected"]),
                share(each["share_both_fall"]),
            ]
            for each in report["displacement"]
        ],
    )
    return [Lines(lines=[said]), table]


def _named_numbers(numbers: dict[str, dict[str, Estimate]]) -> list[Block]:
    """Methods down, numbers across, and below what the numbers are."""
    names = list(dict.fromkeys(name for each in numbers.values() for name in each))
    if not names:
        return []
    table = Table(
        head=["method", *names],
        rows=[
            [Named(name=method), *(number(each.get(name)) for name in names)]
            for method, each in numbers.items()
        ],
    )
    known = [f"{name}: {EXPLANATIONS[name]}." for name in names if name in EXPLANATIONS]
    return [table, Lines(lines=known, is_list=True)] if known else [table]


def _sweep(report: Report) -> list[Block]:
    if not report["sweep"]:
        return []
    said = (
        f"Every setting that was tried, with its {report['quality_name']} on validation prompts. "
        "The selected one of each method went to the test."
    )
    table = Table(
        head=["method", "settings", "validation", "selected"],
        rows=[
            [
                Named(name=each["method"]),
                words.settings(each["settings"]) or DASH,
                number(each["validation"], is_strong=each["is_selected"]),
                "yes" if each["is_selected"] else "no",
            ]
            for each in report["sweep"]
        ],
    )
    return [Lines(lines=[said]), table]


def _lengths(report: Report) -> list[Block]:
    if not report["methods"]:
        return []
    table = Table(
        head=["method", "characters", "ratio to baseline", "cut at the limit", "empty"],
        rows=[
            [
                Named(name=each["name"], detail=_KINDS[each["kind"]]),
                number(each["length"]),
                number(each["length_ratio"]),
                share(each["share_cut"]),
                share(each["share_empty"]),
            ]
            for each in report["methods"]
        ],
    )
    return [table]
