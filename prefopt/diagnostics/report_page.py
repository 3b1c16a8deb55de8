"""Markup, style and fixed words of the report: text is escaped unless it is markup already."""

import html
import math
import re
from collections.abc import Iterable, Sequence

Number = int | float | None
"""As JSON has it."""

SEVERITY = (
    "Severity: how far a step on a group's worst pair alone lowers the chosen log-prob, in units "
    "of what its own gradient lifts it (above 0 it falls); the cosine where nothing is predicted."
)
EXPLANATIONS = {
    "ranking_accuracy": "pairs whose chosen response is at least as likely as the rejected one",
    "ranking_accuracy/per_token": "the same by mean log-prob per token, where length counts less",
    "ranking_accuracy/reference": "ranking accuracy of the reference, where training begins",
    "ranking_accuracy/reference_per_token": "the same by its mean log-prob per token",
    "implicit_reward_accuracy": "pairs whose chosen response gained more over the reference",
    "objective_accuracy": "pairs that the objective's own rewards order as the data does",
    "idealised_ranking_accuracy": "pairs that an exact solution of DPO would rank right",
    "ranking_gap": "idealised ranking accuracy minus the ranking accuracy reached",
    "flips/gained": "pairs that the model ranks right and the reference wrong",
    "flips/lost": "pairs that the model ranks wrong and the reference right",
    "flips/share_of_wrong_gained": "of pairs that the reference ranks wrong, those now right",
    "difficulty/mean": "beta times what the reference favours the rejected response by; 0 is even",
    "difficulty/share_hard": "pairs that the reference ranks wrong",
    "drift/chosen": "log-prob of chosen now minus that when the run began, in nats",
    "drift/rejected": "log-prob of rejected now minus that when the run began, in nats",
    "drift/chosen_per_token": "drift of chosen per token, in nats",
    "drift/rejected_per_token": "drift of rejected per token, in nats",
    "drift/share_both_fall": "pairs of which both responses lost log-prob since the run began",
    "drift/share_both_rise": "pairs of which both responses gained log-prob since then",
    "drift/share_ideal": "pairs whose chosen response gained and whose rejected one lost",
    "length/chosen": "tokens of the chosen response, mean",
    "length/rejected": "tokens of the rejected response, mean",
    "length/gap": "tokens of chosen minus rejected, mean",
    "accuracy_by_length/chosen_shorter": "implicit reward accuracy (ranking accuracy if there is "
    "no reference) on the third of the pairs with the least length gap",
    "accuracy_by_length/similar": "the same on the middle third",
    "accuracy_by_length/chosen_longer": "the same on the third with the greatest length gap",
    "calibration/brier": "squared error of the predicted preference; a coin has 0.25",
    "calibration/nll": "negative log of the probability of the preference; a coin has 0.693",
    "calibration/error": "distance of predicted probabilities from how often they come true",
    "kl": "divergence from the reference on the model's own samples, in nats per response",
}
"""What the numbers of the ranking are."""

_READING = (
    "A Gram matrix holds the inner products <g_i, g_j> of the gradients of the log-probs of a "
    "group's responses. A step along the gradient of response j changes the log-prob of response i "
    "by learning rate times <g_i, g_j>, so gradients that are nearly parallel move together.",
    "Let the gradient of the loss be c_w g_w + c_l g_l, and d_w = -c_w, d_l = c_l. To first order, "
    "a step raises the chosen log-prob if and only if <g_w, g_l> ≤ (d_w / d_l) |g_w|², and lowers "
    "the rejected one if and only if <g_w, g_l> ≤ (d_l / d_w) |g_l|². These are the two "
    "conditions of gradient entanglement (arXiv 2410.13828). A margin may grow while one of them "
    "is broken: then both log-probs fall, or both rise.",
    "Ranking accuracy is the share of pairs whose chosen response is at least as likely as the "
    "rejected one under the model itself (arXiv 2405.19534). It may stay low while the implicit "
    "reward, which is relative to the reference, orders nearly all pairs.",
    "Predictions are those of one step of plain gradient descent on one group. The optimiser's "
    "preconditioner, its momentum, clipping and the other groups of a batch are ignored.",
    "Reds are above 0 and blues below. On a token map a row is a chosen token and a column a "
    "rejected one, and colour grows with the root of a value. A token's colour in the text is the "
    "sum of its row or column: what it adds to the inner product of the whole responses.",
)

_DASH, _MINUS = "\u2013", "\u2212"
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NUM_CHARACTERS_OPEN = 400
"""A longer text is folded."""
_NUM_CHARACTERS_OF_SUMMARY = 140


class Html(str):
    """Markup. Any other string is text, and is escaped wherever it is put into markup."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; `class_` is written `class`, and `aria_label` `aria-label`."""
    words = [name]
    for key, value in attributes.items():
        words.append(f'{key.rstrip("_").replace("_", "-")}="{_escaped(value)}"')
    return Html(f"<{' '.join(words)}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Html:
    """Children one after another."""
    return Html(
        "".join(child if isinstance(child, Html) else _escaped(child) for child in children)
    )


def printable(text: str) -> str:
    """Text without control characters: what HTML has no place for becomes a question mark."""
    return _CONTROLS.sub("\ufffd", text)


def code(text: object) -> Html:
    """A name, a path or a command, which may go on in the next line after a slash."""
    return tag("code", Html(_escaped(text).replace("/", "/<wbr>")))


def paragraph(*children: object, class_: str = "") -> Html:
    """A paragraph."""
    return tag("p", *children, **({"class_": class_} if class_ else {}))


def absent(reason: str) -> Html:
    """Stands where a section or a part of it would be."""
    return paragraph(f"Not shown: {reason}", class_="absent")


def number(value: Number) -> str:
    """Three digits that count, or a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return _DASH
    if isinstance(value, int) or 1000 <= abs(value) < 1e6:
        written = f"{value:,.0f}"
    else:
        written = f"{value:.3g}"
    return written.replace("-", _MINUS, 1) if value < 0 else written


def percent(value: Number) -> str:
    """A share, as a percentage."""
    if value is None or not math.isfinite(value):
        return _DASH
    return f"{number(round(100 * value))} %"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table in a box that scrolls if it is too wide; the first cell of a row names the row."""
    top = tag("tr", *(tag("th", each, scope="col") for each in head))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(_cell(each) for each in row[1:]))
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def long_text(text: str) -> Html:
    """What somebody wrote, as it is; folded if it is long."""
    whole = tag("div", text, class_="text", dir="auto")
    if len(text) <= _NUM_CHARACTERS_OPEN:
        return whole
    beginning = " ".join(text[:_NUM_CHARACTERS_OF_SUMMARY].split())
    summary = tag("summary", beginning, "… ", tag("small", f"{len(text):,} characters"), dir="auto")
    return tag("details", summary, whole)


def strength(value: Number, most: Number) -> dict[str, object]:
    """Attributes that colour an element: red above 0, blue below, paler towards 0."""
    kind, share = _side(value, most)
    return {"class_": kind, "style": f"--a:{share:.2f}"}


def share_bar(parts: Sequence[tuple[str, str, int | float]]) -> Html:
    """Shares side by side: the CSS class, the name and the share of each."""
    label = ", ".join(f"{name} {percent(share)}" for _, name, share in parts)
    pieces = [
        tag("span", class_=kind, style=f"flex-grow:{share:.4f}", title=f"{name}: {percent(share)}")
        for kind, name, share in parts
        if share > 0
    ]
    legend = [
        tag("li", tag("i", class_=kind), f"{name} ", tag("b", percent(share)))
        for kind, name, share in parts
    ]
    bar = tag("div", *pieces, class_="bar", role="img", aria_label=label)
    return joined([bar, tag("ul", *legend, class_="legend")])


def meter(value: Number, most: Number) -> Html:
    """A short bar before a number in a table, red above 0 and blue below."""
    kind, share = _side(value, most)
    return tag("span", class_=f"meter {kind}", style=f"--a:1;--share:{share:.2f}")


def reading() -> Html:
    """How to read the report."""
    return joined(paragraph(each) for each in _READING)


def page(title: str, body: Html, style: str = "") -> Html:
    """The whole file, which loads nothing; `style` is CSS to go after that of all reports."""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
    )
    return Html(
        f"{head}{tag('title', title)}\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{tag('main', body)}\n</body>\n</html>\n"
    )


def _escaped(value: object) -> str:
    return html.escape(printable(str(value)))


def _side(value: Number, most: Number) -> tuple[str, float]:
    """On which side of 0 a number is, and how near to the greatest distance."""
    if not value or not most or not math.isfinite(value):
        return "plus", 0.0
    return "minus" if value < 0 else "plus", min(abs(value) / most, 1.0)


def _cell(value: object) -> Html:
    if isinstance(value, int | float) or value is None:
        return tag("td", number(value))
    # One that has a colour of its own is a cell already.
    return value if isinstance(value, Html) and value.startswith("<td ") else tag("td", value)


_STYLE = """
:root { --paper: #fff; --ink: #1c1e21; --soft: #5d646d; --line: #dfe2e6; --box: #f5f6f8;
  --note: #fff6e0; --note-line: #e0a100; --red: 214 69 65; --azure: 38 122 206;
  --blue: #0072b2; --vermilion: #d55e00; --green: #009e73; --purple: #b8558f; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e4e6e9; --soft: #a0a7b0;
  --line: #343940; --box: #1e2125; --note: #2c2614; --red: 226 86 80; --azure: 74 144 226;
  --blue: #56b4e9; --vermilion: #f0803c; --green: #2fbf95; --purple: #d98abb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3, h4 { font-size: 1rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p, li { max-width: 46rem; margin: .5rem 0; }
small, .soft, .absent, figcaption { color: var(--soft); font-size: .875rem; }
.absent { font-style: italic; }
code, .tokens, .labels { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .875em; }
code { overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0; font-size: .9rem; }
a { color: var(--blue); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 2rem; margin: 1rem 0; }
dl > div { display: flex; gap: 1rem; padding: .3rem 0; border-bottom: 1px solid var(--line);
  font-size: .92rem; }
dt { flex: 0 0 7.5rem; color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
h4 { font-size: .92rem; margin: .7rem 0 .2rem; }
.verdict { max-width: none; background: var(--box); border-left: 4px solid var(--blue);
  padding: .5rem 1rem; border-radius: 4px; font-size: 1.06rem; }
.note { background: var(--note); border-left: 4px solid var(--note-line); padding: .4rem 1rem;
  border-radius: 4px; margin: 1rem 0; overflow-wrap: anywhere; }
.note ul { padding-left: 1.1rem; margin: .3rem 0; }
.scroll { overflow-x: auto; max-width: 100%; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th:first-child { padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .84rem; vertical-align: bottom; }
tbody th { font-weight: 400; }
td, thead th:not(:first-child) { text-align: right; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
th small, td small { display: block; max-width: 40rem; }
td small { color: inherit; opacity: .8; }
.plus { background: rgb(var(--red) / calc(var(--a) * .65)); }
.minus { background: rgb(var(--azure) / calc(var(--a) * .65)); }
.meter { display: inline-block; height: .75em; border-radius: 2px;
  width: calc(6em * var(--share)); margin-right: calc(6em * (1 - var(--share)) + .5em); }
.bar { display: flex; height: 1.6rem; border-radius: 4px; overflow: hidden; gap: 1px;
  max-width: 46rem; }
.bar span { flex-basis: 0; }
.legend { list-style: none; padding: 0; margin: .4rem 0; display: flex; flex-wrap: wrap;
  gap: .1rem 1.2rem; font-size: .9rem; }
.legend li { margin: 0; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .4em; }
.ideal { background: var(--green); } .both_fall { background: var(--vermilion); }
.both_rise { background: var(--blue); } .reversed { background: var(--purple); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1rem; }
figure { margin: .5rem 0; min-width: 0; }
.panels svg { width: 100%; max-width: 28rem; height: auto; display: block; }
article { border: 1px solid var(--line); border-radius: 6px; padding: .2rem 1rem .8rem;
  margin: 1rem 0; }
article h3 { margin-top: .7rem; }
.sides { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.sides > * { min-width: 0; max-width: 100%; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--box); font-size: .92rem;
  padding: .5rem .7rem; border-radius: 4px; margin: .2rem 0 .6rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9;
  margin: .2rem 0 .8rem; }
.tokens span { border-radius: 3px; padding: .1em 0; box-shadow: 0 0 0 .5px var(--line); }
.labels text { fill: var(--ink); font-size: 11px; } .cells { image-rendering: pixelated; }
"""
