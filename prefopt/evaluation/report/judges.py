"""The section on the judges: who they are, and what moves them beside quality."""

from prefopt.evaluation.numbers import JudgeNumbers, Report
from prefopt.evaluation.report.blocks import Block, Cell, Facts, Group, Named, Section, Table, Value
from prefopt.evaluation.report.cells import line, number, share
from prefopt.evaluation.report.words import points


def judges_section(report: Report) -> Section:
    """One group per judge."""
    groups = [Group(title=each["name"], blocks=_judge(each)) for each in report["judges"]]
    return Section(title="Judges", blocks=groups)


def detectable(judge: JudgeNumbers) -> str | None:
    """What difference would have been noticed, in a sentence."""
    numbers = judge["detectable"]
    if numbers is None:
        return None
    tests = numbers["num_tests"]
    corrected = (
        f", {points(numbers['all_tests'])} in the worst of {tests:,} tests with Holm's correction"
        if tests > 1
        else ""
    )
    return (
        "Smallest difference in win rate that would be noticed 8 times of 10 at a level of 5 %: "
        f"{points(numbers['one_test'])} in a single test{corrected} (standard error "
        f"{points(numbers['standard_error'])})."
    )


def answered(judge: JudgeNumbers) -> str:
    """`1,580 of 1,600 questions (98.8 %; 12 refusal, 8 api_error)`."""
    coverage = judge["coverage"]
    said = [f"{100 * coverage['share']:.1f} %"]
    missing = [f"{n:,} {name}" for name, n in coverage["by_status"].items() if n and name != "ok"]
    if missing:
        said.append(", ".join(missing))
    return f"{coverage['num_ok']:,} of {coverage['num_asked']:,} questions ({'; '.join(said)})"


def _judge(judge: JudgeNumbers) -> list[Block]:
    identity = [(key.replace("_", " "), str(each)) for key, each in judge["identity"].items()]
    facts = Facts(pairs=[*identity, ("answered", answered(judge))])
    return [facts, *line(judge["note"]), *_numbers(judge), *line(detectable(judge))]


def _numbers(judge: JudgeNumbers) -> list[Block]:
    order = judge["order"]
    named: list[tuple[str, str, Cell]] = [
        ("effect of length", "logit, of one standard deviation", number(judge["length_effect"])),
        ("effect of the slot", "logit, of standing first", number(judge["slot_effect"])),
        (
            "intransitive triples",
            "a over b, b over c, c over a",
            share(judge["intransitive_share"]),
        ),
        ("conflicts", "better by pair, worse by score", share(judge["conflict_share"])),
    ]
    if order is not None:
        named = [
            ("first slot wins", "50 % if order has no effect", share(order["first_slot_rate"])),
            ("same verdict in both orders", "", share(order["consistent_share"])),
            ("label mass", "probability given to any label", share(order["label_mass"])),
            *named,
        ]
    rows: list[list[Cell]] = [
        [Named(name=name, detail=detail), cell]
        for name, detail, cell in named
        if isinstance(cell, Value)
    ]
    return [Table(head=["number", "value"], rows=rows)] if rows else []
