"""Prompts and what every method answered, side by side where the screen is wide enough."""

from prefopt.diagnostics.report_page import Html, joined, number, tag
from prefopt.evaluation.numbers import Example
from prefopt.evaluation.report.blocks import Answers

_NUM_OPEN = 1
"""Of the examples; those after them are folded."""


def examples(block: Answers) -> Html:
    """One box per prompt, turn by turn."""
    return joined(_example(each, i < _NUM_OPEN) for i, each in enumerate(block.examples))


def _example(example: Example, is_open: bool) -> Html:
    first = " ".join(example["turns"][0].split())
    beginning = first if len(first) <= 90 else f"{first[:90]}…"
    category = [" ", tag("small", example["category"])] if example["category"] else []
    turns = [_turn(example, i) for i in range(len(example["turns"]))]
    opened: dict[str, object] = {"open": "open"} if is_open else {}
    summary = tag("summary", tag("b", beginning), *category, dir="auto")
    return tag("details", summary, *turns, class_="example", **opened)


def _turn(example: Example, turn: int) -> Html:
    num = len(example["turns"])
    name = "Prompt" if num == 1 else f"Prompt, turn {turn + 1} of {num}"
    answers = [
        tag(
            "div",
            tag("h4", answer["method"], *_score(answer["score"], turn)),
            _text(answer["turns"][turn]),
            class_="answer",
        )
        for answer in example["answers"]
        if turn < len(answer["turns"])
    ]
    return joined(
        [tag("h4", name), _text(example["turns"][turn]), tag("div", *answers, class_="answers")]
    )


def _score(score: float | None, turn: int) -> list[object]:
    """Once per answer, which has one score for all its turns."""
    return [] if score is None or turn else [" ", tag("small", number(score))]


def _text(text: str) -> Html:
    if not text:
        return tag("div", "empty", class_="text absent")
    return tag("div", text, class_="text", dir="auto", tabindex=0)
