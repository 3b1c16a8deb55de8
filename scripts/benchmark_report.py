"""What was measured, for people: a table on the terminal, and a section of a Markdown page."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

PACKAGES = ("prefopt", "trl", "torch", "transformers", "peft", "accelerate")
BASELINES = ("T0", "T1")
HEADS = (
    "arm",
    "groups/s",
    "useful tokens/s",
    "x T0",
    "x T1",
    "x row above",
    "roof",
    "peak MiB",
    "above start",
)


def facts(device: str, num_threads: int, command: str) -> dict[str, Any]:
    """Machine in words, versions and command."""
    machine = f"{_processor()}, {os.cpu_count()} cores, {num_threads} threads used"
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()}; {machine}"
    return {
        "machine": machine,
        "versions": {name: version(name) for name in PACKAGES},
        "command": command,
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"model name\s*: (.+)", text)
    return found[1] if found else platform.machine()


def rows_of(measured: Mapping[str, Any]) -> Iterator[list[str]]:
    """Cells of a workload's table, one row per arm, as HEADS says."""
    names = list(measured["arms"])
    for i, name in enumerate(names):
        arm = measured["arms"][name]
        before = names[i - 1] if i > 0 else ""
        peak, start = arm["memory"]["peak"], arm["memory_at_start"]["now"]
        yield [
            name,
            f"{arm['groups_per_second']:.3g}",
            f"{arm['useful_tokens_per_second']:,.0f}",
            *(_ratio(measured, name, slow) for slow in (*BASELINES, before)),
            f"{100 * arm['share_of_roof']:.0f} %",
            f"{peak:,.0f}",
            f"{peak - start:,.0f}",
        ]


def _ratio(measured: Mapping[str, Any], fast: str, slow: str) -> str:
    """With its interval; nothing where there is no such pair."""
    found = measured["ratios"].get(f"{fast}/{slow}")
    return "" if found is None else f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def notes_on(measured: Mapping[str, Any]) -> Iterator[str]:
    """What belongs beside a workload's table."""
    roofs, arms = measured["roofs"], measured["arms"]
    num_steps = measured["num_groups"] // measured["groups_per_step"]
    yield (
        f"{measured['num_groups']} groups in {num_steps} steps, {measured['useful_tokens']:,} "
        f"useful tokens; {len(measured['repeats_used'])} of {len(roofs) - 1} repeats; roof "
        f"{min(roofs) / 1e9:,.0f} to {max(roofs) / 1e9:,.0f} GFLOP/s."
    )
    if not measured["is_quiet"]:
        yield "The roof moved by more than 5 % during most repeats: the machine was not quiet."
    if measured["pairs_per_group"] > 1:
        yield (
            f"trl has no lists: it trains the pairwise expansion, {measured['pairs_per_group']} "
            "pairs per group."
        )
    tried = {name: arm["pairs_per_micro_batch"] for name, arm in arms.items()}
    sizes = ", ".join(f"{name} {size}" for name, size in tried.items() if size is not None)
    yield f"Pairs per micro-batch of trl: {sizes}."
    worst = max(arm["agreement"]["logps"] for arm in arms.values())
    cosine = min(arm["agreement"]["cosine"] for arm in arms.values())
    yield f"Gate: log-probs within {worst:.1e} nats, least cosine of gradients {cosine:.7f}."
    shares = {name: arm["mfu"] for name, arm in arms.items() if arm["mfu"] is not None}
    if shares:
        listed = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        yield f"MFU, of 989.4 TFLOP/s: {listed}."
    if cache := measured["cache"]:
        after = cache["break_even_epochs"]
        paid = "never" if after is None else f"after {after:.2f} epochs"
        yield (
            "The reference's one pass, the first work of its process, takes "
            f"{100 * cache['share_of_epoch']:.0f} % of an epoch with the cache and has paid "
            f"{paid}; a live one takes {100 * cache['live_share_of_epoch']:.0f} % in every epoch."
        )


def print_training(result: Mapping[str, Any], console: Console) -> None:
    """All workloads as tables."""
    for name, measured in result["workloads"].items():
        table = Table(title=f"{name}: {measured['what']}", title_justify="left")
        for head in HEADS:
            table.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
        for row in rows_of(measured):
            table.add_row(*row)
        console.print(table)
        for note in notes_on(measured):
            console.print(note)
        console.print()
    for name, what in _arms_of(result).items():
        console.print(f"{name}  {what}")


def _arms_of(result: Mapping[str, Any]) -> dict[str, str]:
    measured = next(iter(result["workloads"].values()))
    return {name: arm["what"] for name, arm in measured["arms"].items()}


def heading_of(result: Mapping[str, Any]) -> str:
    """One section per device."""
    where = "a GPU" if result["protocol"]["device"] == "cuda" else "CPUs"
    return f"## Training against trl on {where}"


def as_markdown(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    about = result["facts"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    protocol = result["protocol"]
    lines = [
        heading_of(result),
        "",
        f"`{about['command']}`: {about['machine']}; {versions}. Model of {protocol['size']} "
        f"parameters with random weights, {_precision(protocol)}.",
        "",
        *(f"- **{name}** {what}" for name, what in _arms_of(result).items()),
        "",
        "Ratios are of epochs in the same repeats, with 95 % of their bootstrap distribution. "
        "Useful tokens are real ones, each prompt once. The roof is what products of the model's "
        "shapes reach; an arm's share of it counts work over shared prompts, without padding or "
        "recomputation. Memory is a process's own, and how much of it came after the first step.",
    ]
    for name, measured in result["workloads"].items():
        lines += ["", f"### {name}: {measured['what']}", ""]
        lines += [_row(HEADS), _row(["---"] * len(HEADS)), *map(_row, rows_of(measured)), ""]
        lines += [" ".join(notes_on(measured))]
    return "\n".join(lines) + "\n"


def _precision(protocol: Mapping[str, Any]) -> str:
    if protocol["device"] != "cuda":
        return "float32"
    is_lora = protocol["size"].endswith("-lora")
    return "bfloat16 with an adapter" if is_lora else "bfloat16 over float32 weights"


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def put_section(page: Path, section: str) -> None:
    """Write a section into a page, in the place of the one with its heading if there is one."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    heading = section.splitlines()[0]
    kept = [part for part in re.split(r"(?m)^(?=## )", text)]
    places = [i for i, part in enumerate(kept) if part.splitlines()[:1] == [heading]]
    if places:
        is_last = places[0] == len(kept) - 1
        kept[places[0]] = section if is_last else section + "\n"
    else:
        kept.append(("\n" if text and not text.endswith("\n\n") else "") + section)
    page.write_text("".join(kept), encoding="utf-8")
