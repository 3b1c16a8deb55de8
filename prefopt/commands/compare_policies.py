"""What was measured of every trained policy, once for the same weights and settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from prefopt.commands.compare_answers import policy_of, start_of
from prefopt.commands.compare_measure import PolicyMeter
from prefopt.comparison.assemble import Policy
from prefopt.comparison.plan import Run
from prefopt.comparison.section import ComparisonSection
from prefopt.config import Recipe
from prefopt.evaluation.files import write_json
from prefopt.evaluation.generate.load import digest_of
from prefopt.evaluation.generate.run import digest_of_prompts
from prefopt.evaluation.types import Prompt


def measured_policies(
    section: ComparisonSection,
    start: Recipe,
    runs: Sequence[Run],
    selected: set[str],
    prompts: Sequence[Prompt],
) -> list[Policy]:
    """Measure what is not measured yet, or was with other settings or weights.

    Args:
        section: says what is measured.
        start: a recipe of the comparison, whose start is that of all.
        runs: all that is trained.
        selected: names of those that the report is about.
        prompts: what policies answer for their KL.
    """
    meter: PolicyMeter | None = None
    found = []
    for run in runs:
        file = section.output_dir / "measured" / f"{run.name}.json"
        is_first = run.name in selected and run.seed == section.seeds[0]
        entanglement = section.entanglement
        num_groups = entanglement.groups if entanglement is not None and is_first else 0
        about = _about(section, start, run, num_groups, prompts)
        numbers = _read(file)
        if numbers is None or numbers.get("about") != about:
            meter = meter or PolicyMeter(start, prompts, section.kl)
            numbers = {"about": about, **meter.measure(run, num_groups)}
            write_json(file, numbers)
        found.append(_policy(run, numbers, is_selected=run.name in selected))
    typer.echo(f"{len(found)} policies measured")
    return found


def _about(
    section: ComparisonSection,
    start: Recipe,
    run: Run,
    num_groups: int,
    prompts: Sequence[Prompt],
) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    kl = section.kl
    return {
        "policy": digest_of(*policy_of(run)),
        "start": digest_of(*start_of(start)),
        "kl": None if kl is None else kl.model_dump(mode="json"),
        "prompts": None if kl is None else digest_of_prompts(prompts[: kl.max_prompts]),
        "entanglement_groups": num_groups,
    }


def _read(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    numbers: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return numbers


def _policy(run: Run, numbers: Mapping[str, Any], *, is_selected: bool) -> Policy:
    return Policy(
        method=run.setting.method,
        seed=run.seed,
        system=run.name,
        settings=run.setting.values,
        is_selected=is_selected,
        kl=numbers.get("kl", {}).get("kl"),
        pairs=numbers["pairs"],
        entanglement=numbers.get("entanglement", {}),
    )
