"""The report as blocks, in the order in which it is read."""

from prefopt.evaluation.numbers import Report
from prefopt.evaluation.report import words
from prefopt.evaluation.report.blocks import Answers, Block, Facts, Lines, Named, Section, Table
from prefopt.evaluation.report.cells import line
from prefopt.evaluation.report.judged import judged_sections
from prefopt.evaluation.report.judges import judges_section
from prefopt.evaluation.report.trained import trained_sections
from prefopt.evaluation.report.words import DASH


def facts(report: Report) -> Facts:
    """What stands under the title."""
    return Facts(
        pairs=[
            ("Protocol", report["protocol"]),
            ("Baseline", report["baseline"]),
            ("Prompts", f"{report['num_prompts']:,}"),
            ("Seeds", f"{report['num_seeds']:,}"),
            ("Made", report["made_at"]),
        ]
    )


def sections(report: Report) -> list[Section]:
    """All that have something to show."""
    found = [
        *judged_sections(report),
        *trained_sections(report),
        judges_section(report),
        Section(title="Example answers", blocks=_examples(report)),
        Section(title="What sharing saved", blocks=_saved(report)),
        Section(title="Notes", blocks=_notes(report)),
        Section(title="How this was made", blocks=_made(report)),
    ]
    return [each for each in found if each.blocks]


def _examples(report: Report) -> list[Block]:
    if not report["examples"]:
        return []
    has_scores = any(a["score"] is not None for e in report["examples"] for a in e["answers"])
    said = (
        "The number beside a method is what the first judge says of its answer: the probability "
        f"that it is better than that of {report['baseline']}, or its score."
    )
    return [*line(said if has_scores else None), Answers(examples=report["examples"])]


def _saved(report: Report) -> list[Block]:
    saved = report["saved"]
    if saved is None:
        return []
    counts = Facts(
        pairs=[
            ("Runs", f"{saved['num_runs']:,}"),
            ("Groups computed", f"{saved['num_reference_groups']:,}"),
            ("Without sharing", f"{saved['num_reference_groups_alone']:,}"),
        ]
    )
    return [*line(saved["sentence"]), counts]


def _notes(report: Report) -> list[Block]:
    return [Lines(lines=report["notes"], is_list=True)] if report["notes"] else []


def _made(report: Report) -> list[Block]:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    methods = Table(
        head=["method", "kind", "settings", "seeds"],
        rows=[
            [
                Named(name=each["name"]),
                each["kind"],
                words.settings(each["settings"]) or DASH,
                ", ".join(map(str, each["seeds"])) or DASH,
            ]
            for each in report["methods"]
        ],
    )
    pairs = [("Command", report["command"]), ("Versions", versions)]
    reading = (
        "Numbers in brackets are 95 % intervals. Win rates count ties half and average both "
        "orders of showing. LC (prefopt) is the win rate at equal lengths by the Bradley-Terry "
        "model; it is not AlpacaEval's length-controlled win rate."
    )
    shown: list[Block] = [methods] if report["methods"] else []
    return [*shown, Facts(pairs=[pair for pair in pairs if pair[1]]), Lines(lines=[reading])]
