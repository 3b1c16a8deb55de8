"""Speed as ratios of times taken in one run, interleaved; a correctness gate comes first.

objectives  the cost of every objective, from [G, K] log-probs to their gradient with K = 8, as
            a share of a training step of a small Qwen3 model with dpo
head        the log-prob head against what it replaces
gram        the Gram of a group's gradients against a plain forward and backward pass
train       training steps of prefopt, its features added one at a time, against trl's DPOTrainer
            with default and with tuned settings, on lengths like those of known data sets
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from benchmark_arms import ARMS
from benchmark_gram import gram
from benchmark_head import head
from benchmark_models import SIZES
from benchmark_objectives import objectives, print_table
from benchmark_report import as_markdown, facts, print_training, put_section
from benchmark_train import (
    FIRST,
    QUICK_ARMS,
    QUICK_WORKLOADS,
    GateError,
    Protocol,
    train,
)
from benchmark_workloads import load_workloads
from rich.console import Console


def main() -> None:
    """Run one benchmark; exit with 1 if what would be timed is not right."""
    arguments = _parser().parse_args()
    torch.manual_seed(0)
    try:
        result = {"objectives": _objectives, "head": _head, "gram": _gram, "train": _train}[
            arguments.what
        ](arguments)
    except GateError as error:
        sys.exit(f"error: {error} Nothing was timed.")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("objectives", "head", "gram"):
        command = commands.add_parser(name)
        command.add_argument("--rounds", type=int, default=5, help="How often all is timed.")
    command = commands.add_parser("train")
    command.add_argument("--quick", action="store_true", help="Two workloads, in minutes.")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument("--model-size", choices=SIZES, help="7M on a CPU, 0.6B on a GPU.")
    names = [workload.name for workload in load_workloads()]
    command.add_argument("--workloads", nargs="+", choices=names)
    command.add_argument("--arms", nargs="+", choices=ARMS, help=f"{FIRST} is always there.")
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--repeats", type=int, help="Epochs that are timed.")
    command.add_argument("--steps", type=int, help="Optimiser steps of an epoch.")
    command.add_argument("--shorten", type=int, default=1, help="Divides all lengths, to try out.")
    command.add_argument("--page", type=Path, help="Markdown page that gets the section.")
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="File for the numbers, as JSON.")
    return parser


def _objectives(arguments: argparse.Namespace) -> dict[str, Any]:
    result = objectives(arguments.rounds)
    print_table(result)
    return result


def _head(arguments: argparse.Namespace) -> dict[str, Any]:
    result = head(arguments.rounds)
    for name, milliseconds in result["milliseconds"].items():
        print(f"{name:<12}{milliseconds:>9.1f} ms   error {result['errors'][name]:.1e}")
    for name, ratio in result["ratios"].items():
        print(f"{name:<32}{ratio:>6.2f}")
    return result


def _gram(arguments: argparse.Namespace) -> dict[str, Any]:
    result = gram(arguments.rounds)
    for name, row in result["workloads"].items():
        print(
            f"{name:<16}{row['plain_ms']:>9.1f} ms plain{row['gram_ms']:>9.1f} ms Gram"
            f"{row['ratio']:>8.2f}"
        )
    print(
        f"diagnostics: {{every: 50, groups: 8}} take {result['share_of_training']:.2%} of the time "
        "of training at 32 groups per step"
    )
    return result


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    protocol = protocol_of(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    about = facts(protocol.device, protocol.num_threads, _command())
    console.print(about["machine"])
    result = {"facts": about, **train(protocol, say=console.print)}
    print_training(result, console)
    if arguments.page is not None:
        put_section(arguments.page, as_markdown(result))
    return result


def protocol_of(arguments: argparse.Namespace) -> Protocol:
    """What the command line asks for; what it leaves open depends on the device."""
    is_cuda, is_quick = arguments.device == "cuda", arguments.quick
    arms = arguments.arms or (QUICK_ARMS if is_quick else list(ARMS))
    workloads = arguments.workloads or (QUICK_WORKLOADS if is_quick else None)
    return Protocol(
        workloads=None if workloads is None else tuple(workloads),
        arms=tuple(name for name in ARMS if name in {FIRST, *arms}),
        size=arguments.model_size or ("0.6B" if is_cuda else "7M"),
        device=arguments.device,
        num_threads=arguments.threads,
        # Steps that fill a GPU; all of the committed groups are some of those.
        groups_factor=4 if is_cuda else 1,
        num_steps=arguments.steps or (4 if is_cuda else None),
        num_repeats=arguments.repeats or (3 if is_quick else 5),
        num_warm_up=5 if is_cuda else 1,
        length_divisor=arguments.shorten,
    )


def _command() -> str:
    """As it was given, without where the numbers go."""
    given, kept = iter(sys.argv[1:]), []
    for argument in given:
        if argument in ("--output", "--page"):
            next(given)
        else:
            kept.append(argument)
    return f"python scripts/benchmark.py {shlex.join(kept)}"


if __name__ == "__main__":
    main()
