"""The report of `prefopt diagnose`: one HTML file that needs nothing else."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefopt.diagnostics.report_page import (
    EXPLANATIONS,
    SEVERITY,
    Html,
    absent,
    code,
    facts,
    joined,
    long_text,
    number,
    page,
    paragraph,
    percent,
    reading,
    share_bar,
    table,
    tag,
)
from prefopt.diagnostics.report_plots import (
    depth_plots,
    gram_map,
    part_table,
    token_maps,
    training_plots,
)
from prefopt.diagnostics.report_step import step_table

NAME = "report.html"

_CLASSES = {
    "ideal": "chosen rises, rejected falls",
    "both_fall": "both fall",
    "both_rise": "both rise",
    "reversed": "chosen falls, rejected rises",
}
_WORTH_A_REMEDY = 0.1
"""From this share of the pairs on, the report says what can be done."""
_TRUSTED = 0.9
_NO_PAIRS = "no group has both a chosen and a rejected response."


def write_report(diagnosis: dict[str, Any], folder: Path) -> Path:
    """Write report.html into a folder; it is the old one or the new one, never a part.

    Args:
        diagnosis: what was measured, as in report.json.
        folder: where it goes; it is made if need be.

    Returns:
        The path of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{NAME}.partial"
    # A tokenizer may leave half a character, which UTF-8 has no bytes for.
    partial.write_text(_page(diagnosis), encoding="utf-8", errors="replace")
    os.replace(partial, folder / NAME)
    return folder / NAME


def _page(diagnosis: dict[str, Any]) -> Html:
    sections = {
        "Ranking": _ranking(diagnosis["ranking"]),
        "Conditions": _conditions(diagnosis["entanglement"], diagnosis["step"]),
        "Training": training_plots(diagnosis["training"]),
        "Worst groups": _groups(diagnosis),
        "Token maps": token_maps(diagnosis["token_maps"]),
        "Verification": _verification(diagnosis["verification"]),
        "How to read this": reading(),
    }
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    links = (tag("a", title, href=f"#{anchor}") for title, anchor in anchors.items())
    body = joined(
        [
            tag("h1", f"Diagnosis of {diagnosis['model']}"),
            _facts(diagnosis),
            paragraph(" ".join(_verdict(diagnosis)), class_="verdict"),
            _notes(diagnosis),
            tag("nav", *links),
            *(
                tag("section", tag("h2", title, id=anchors[title]), content)
                for title, content in sections.items()
            ),
        ]
    )
    return page(f"prefopt diagnose: {diagnosis['model']}", body)


def _facts(diagnosis: dict[str, Any]) -> Html:
    trainable, measured = diagnosis["num_trainable"], diagnosis["num_measured"]
    objective = diagnosis["objective"] or {}
    parameters = [f"{key} = {value}" for key, value in objective.items() if key != "name"]
    rate = diagnosis["learning_rate"]
    return facts(
        [
            ("Model", code(diagnosis["model"])),
            ("Reference", code(diagnosis["reference"] or "none")),
            ("Objective", ", ".join([objective.get("name", "none"), *parameters])),
            ("Data", joined(tag("div", code(path)) for path in diagnosis["data"])),
            ("Measured", f"{diagnosis['num_groups']:,} groups, {diagnosis['num_pairs']:,} pairs"),
            ("Parameters", f"{measured:,} of {trainable:,} trainable ones"),
            ("Learning rate", "none: changes are per unit of it" if rate is None else f"{rate:g}"),
            ("Seed", f"{diagnosis['seed']}"),
            ("Command", code(diagnosis["command"])),
            ("Written", f"{diagnosis['created']} by prefopt {diagnosis['prefopt']}"),
        ]
    )


def _notes(diagnosis: dict[str, Any]) -> Html:
    notes, missing = diagnosis["notes"], diagnosis["missing"]
    if not notes and not missing:
        return Html("")
    lines = [tag("li", note) for note in notes]
    if missing:
        said = f"{len(missing):,} trainable parameters are not in the inner products."
        names = tag("ul", *(tag("li", code(name)) for name in missing))
        lines.append(tag("li", tag("details", tag("summary", said), names)))
    return tag("div", tag("b", "What to bear in mind"), tag("ul", *lines), class_="note")


def _ranking(ranking: dict[str, Any]) -> Html:
    if not ranking:
        return absent("no two responses of a group differ in score, so there is no ranking.")
    rows = [
        (joined([code(name), tag("small", EXPLANATIONS.get(name, ""))]), each["value"], each["num"])
        for name, each in ranking.items()
    ]
    return table(("number", "value", "n"), rows)


def _conditions(entanglement: dict[str, Any] | None, step: dict[str, Any] | None) -> Html:
    if entanglement is None:
        return absent(_NO_PAIRS)
    num, shares = entanglement["num_pairs"], entanglement["classes"]
    cosine, norms = entanglement["cosine"], entanglement["gradient_norm"]
    rows = [(f"cosine of the two gradients, {name}", value, num) for name, value in cosine.items()]
    rows += [(f"gradient norm of {name}, mean", value, num) for name, value in norms.items()]
    rows += [
        (
            f"share whose {name} condition is broken",
            entanglement[f"share_{name}_condition_broken"],
            num,
        )
        for name in ("chosen", "rejected")
    ]
    return joined(
        [
            tag("h3", f"What a small step does to the two log-probs (n = {num:,} pairs)"),
            share_bar([(key, name, shares[key]) for key, name in _CLASSES.items()])
            if shares
            else absent("there is no objective, so no step to predict."),
            table(("over the pairs", "value", "n"), rows),
            step_table(step),
            tag("h3", f"Where the inner product comes from (means over n = {num:,} pairs)"),
            part_table(entanglement["by_part"]),
            depth_plots(entanglement["by_depth"]),
        ]
    )


def _groups(diagnosis: dict[str, Any]) -> Html:
    groups = diagnosis["groups"]
    if not groups:
        return absent(_NO_PAIRS)
    rate = diagnosis["rate_of_changes"]
    unit = "per unit of learning rate" if rate is None else f"at learning rate {rate:g}"
    said = [f"The {len(groups)} worst of {diagnosis['num_groups']:,} groups. {SEVERITY}"]
    if all(group["predicted"] is None for group in groups):
        said.append("Predicted changes are not shown: there is no objective.")
    else:
        said.append(f"Changes of log-probs are in nats, {unit}.")
    if all(group["realised"] is None for group in groups):
        said.append("Realised changes are not shown: no step was taken.")
    return joined([paragraph(" ".join(said)), *map(_group, groups)])


def _group(group: dict[str, Any]) -> Html:
    size = f"cosine {number(group['cosine'])} · severity {number(group['severity'])}"
    kind = _CLASSES.get(group["class"], "no class")
    responses = zip(group["scores"], group["responses"], strict=True)
    return tag(
        "article",
        tag("h3", group["id"], tag("small", f" · {kind} · {size}")),
        tag("div", gram_map(group), _responses(group), class_="sides"),
        tag("h4", "Prompt"),
        long_text(group["prompt"]),
        *(
            joined([tag("h4", f"Response {i}, score {number(score)}"), long_text(response)])
            for i, (score, response) in enumerate(responses, start=1)
        ),
    )


def _responses(group: dict[str, Any]) -> Html:
    columns: dict[str, Sequence[Any] | None] = {
        "response": range(1, len(group["responses"]) + 1),
        "score": group["scores"],
        "tokens": group["num_tokens"],
        "gradient norm": [max(row[i], 0.0) ** 0.5 for i, row in enumerate(group["gram"])],
        "coefficient": group["coefficients"],
        "predicted change": group["predicted"],
        "realised change": group["realised"],
    }
    shown = {name: values for name, values in columns.items() if values is not None}
    return tag(
        "figure",
        tag("figcaption", f"The n = {len(group['responses'])} responses"),
        table(list(shown), list(zip(*shown.values(), strict=True))),
    )


def _verification(verification: dict[str, Any] | None) -> Html:
    if verification is None:
        return absent(
            "no step was taken, so predicted changes were not held against realised ones."
        )
    num = verification["num_responses"]
    rows = zip(
        [f"{rate:g}" for rate in verification["learning_rates"]],
        verification["relative_errors"],
        map(percent, verification["sign_agreement"]),
        [num] * len(verification["learning_rates"]),
        strict=True,
    )
    said = (
        f"Predicted changes against those of real steps, over n = {num:,} responses. The error "
        "must shrink with the learning rate; what is left at the smallest one is rounding."
    )
    head = ("learning rate", "relative error", "signs agree", "n")
    return joined([paragraph(said), table(head, list(rows))])


def _verdict(diagnosis: dict[str, Any]) -> Iterator[str]:
    """What the numbers say, in two to four sentences."""
    entanglement = diagnosis["entanglement"]
    if entanglement is None:
        yield f"Nothing can be said about gradient entanglement: {_NO_PAIRS}"
    else:
        yield from _verdict_on_pairs(entanglement, (diagnosis["objective"] or {}).get("name"))
    verification, ranking = diagnosis["verification"], diagnosis["ranking"]
    if verification is not None:
        rates, agreement = verification["learning_rates"], verification["sign_agreement"]
        rate, share = min(zip(rates, agreement, strict=True))
        if share < _TRUSTED:
            yield (
                f"Take predictions with care: real steps at learning rate {rate:g} move only "
                f"{percent(share)} of {verification['num_responses']:,} responses as predicted."
            )
            return
    if "ranking_accuracy" in ranking:
        value, num = ranking["ranking_accuracy"]["value"], ranking["ranking_accuracy"]["num"]
        yield f"The model itself ranks {percent(value)} of {num:,} pairs as the data does."


def _verdict_on_pairs(entanglement: dict[str, Any], name: str | None) -> Iterator[str]:
    num, shares = entanglement["num_pairs"], entanglement["classes"]
    if shares and name:
        yield (
            f"A small step of {name} lowers the log-prob of both responses in "
            f"{percent(shares['both_fall'])} of {num:,} pairs, raises both in "
            f"{percent(shares['both_rise'])}, and parts them as it should in "
            f"{percent(shares['ideal'])}."
        )
    cosine = entanglement["cosine"]["median"]
    if cosine is not None:
        yield (
            f"The gradients of chosen and rejected {_how_parallel(cosine)} "
            f"(median cosine {number(cosine)} over {num:,} pairs)."
        )
    if not shares:
        return
    if shares["both_fall"] + shares["reversed"] >= _WORTH_A_REMEDY:
        yield (
            "To hold the chosen response up, add an nll term by weighted_sum, take an objective "
            "with an anchor such as dpop or nca, or set training.normalise_gradients."
        )
    elif shares["both_rise"] >= _WORTH_A_REMEDY:
        yield (
            "To keep the rejected response from rising too, give the chosen one's likelihood less "
            "weight, or set training.normalise_gradients."
        )
    else:
        yield "Few pairs break a condition, so no remedy is called for."


def _how_parallel(cosine: int | float) -> str:
    if cosine >= 0.7:
        return "are nearly parallel, so that what moves one moves the other along"
    if cosine >= 0.3:
        return "share much of their direction, so that each moves the other in part"
    if cosine > -0.3:
        return "have little in common, so that each can move by itself"
    return "oppose each other, so that raising one lowers the other"
