"""`prefopt evaluate pairs`: held-out pairs under several models, side by side."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from prefopt.commands.diagnose_subject import Subject
from prefopt.commands.evaluate import (
    load_on_device,
    loaded_subject,
    print_numbers,
    reference_name,
    versions,
)
from prefopt.commands.hush import hush
from prefopt.commands.parts import steps_of
from prefopt.data.plan import StepPlan
from prefopt.data.prepare import open_sources, prepare_data
from prefopt.data.section import DataSection, SourceSection
from prefopt.data.store import TokenStore
from prefopt.diagnostics.ranking import HeldOut
from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.files import write_json
from prefopt.evaluation.held_out import pair_numbers
from prefopt.evaluation.numbers import Estimate
from prefopt.models.head import layout_of
from prefopt.models.reference import FrozenCopy
from prefopt.models.tokenizer import load_tokenizer
from prefopt.objectives import Objective
from prefopt.train.fixed_groups import FixedGroups
from prefopt.train.steps import StepDataset

PAIRS_FILE = "pairs.json"
_SHOWN = (
    "ranking_accuracy",
    "ranking_accuracy/per_token",
    "implicit_reward_accuracy",
    "objective_accuracy",
    "ranking_accuracy/reference",
    "ranking_accuracy/reference_per_token",
    "margin_auc/policy",
    "margin_auc/implicit_reward",
    "accuracy_by_length/chosen_shorter",
    "accuracy_by_length/similar",
    "accuracy_by_length/chosen_longer",
    "accuracy_by_length/chosen_is_longer",
    "accuracy_by_length/chosen_is_not_longer",
    "calibration/error",
    "calibration/brier",
    "calibration/nll",
    "drift/chosen",
    "drift/rejected",
    "drift/share_both_fall",
)

_NO_REFERENCE = "without --reference, its accuracies by length and subset are of its own log-probs."


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One model and what it says of the pairs."""

    target: str
    objective: dict[str, Any] | None
    """What it was trained by; None where no recipe says it."""
    reference: str | None
    held_out: HeldOut
    ids: tuple[str, ...]
    """Of the groups, `file:row`."""
    prompts: tuple[str, ...]
    """Equal for groups of the same prompt."""
    notes: tuple[str, ...]


def run(
    targets: Sequence[str],
    overrides: Sequence[str],
    *,
    data: Sequence[str],
    reference: str | None,
    subset: str | None,
    as_messages: bool,
    output: Path,
) -> None:
    """Score, print a table and write pairs.json; see `prefopt evaluate pairs --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    hush()
    again = [name for name, num in Counter(targets).items() if num > 1]
    if again:
        raise UserError(f"{again[0]} is named twice. Name every model once.")
    sources = tuple(SourceSection(path=path, as_messages=as_messages) for path in data)
    of_record = _subsets(sources, subset)
    scored = [_scored(target, overrides, sources, reference) for target in targets]
    notes = [f"{each.target}: {note}" for each in scored for note in each.notes]
    shared = set[str].intersection(*(set(each.ids) for each in scored))
    if not shared:
        raise UserError("--data: no group is within data.max_length of all models.")
    left_out = max(len(each.ids) for each in scored) - len(shared)
    if left_out:
        notes.append(f"{left_out:,} groups are left out, since some models have no room for them.")
    columns = {
        name: _numbers(each, shared, of_record)
        for name, each in zip(_names(targets), scored, strict=True)
    }
    if not all(columns.values()):
        raise UserError("--data: no group has responses of which one scores higher than another.")
    by_subset = sorted({name for each in columns.values() for name in each if "by_subset" in name})
    num_pairs = next(iter(columns.values()))["ranking_accuracy"]["n"]
    title = f"{num_pairs:,} pairs of {len(shared):,} groups; ties count half"
    print_numbers(title, columns, [*_SHOWN, *by_subset])
    if len({each.reference for each in scored} - {None}) > 1:
        notes.append("References differ; give --reference to measure all against the same one.")
    for note in notes:
        typer.echo(f"note: {note}")
    models = [
        {
            "name": name,
            "model": each.target,
            "objective": each.objective,
            "reference": each.reference,
            "numbers": columns[name],
        }
        for name, each in zip(columns, scored, strict=True)
    ]
    about = {"data": list(data), "num_groups": len(shared), "ties": "half", "notes": notes}
    file = output / PAIRS_FILE
    write_json(
        file, {"schema": "prefopt/pairs/1", **about, "versions": versions(), "models": models}
    )
    typer.echo(f"all numbers in {file}")


def _subsets(sources: Sequence[SourceSection], column: str | None) -> dict[str, str] | None:
    """The subset of each row, by the name that its record gets; None if there is but one."""
    opened = open_sources(sources, num_train=len(sources))
    named = [pair for each in opened for pair in zip(each.part_names, each.parts, strict=True)]
    if column is None:
        if len(named) == 1:
            return None
        return {f"{name}:{number}": name for name, part in named for number, _ in part.rows()}
    found = {}
    for name, part in named:
        for number, row in part.rows():
            if row.get(column) is None:
                raise UserError(f"--subset: {part.place}:{number}: {_no_column(column, row)}")
            found[f"{name}:{number}"] = str(row[column])
    return found


def _no_column(column: str, row: Any) -> str:
    return f"no value in a column '{column}'. {did_you_mean(column, row)}"


def _scored(
    target: str, overrides: Sequence[str], sources: tuple[SourceSection, ...], reference: str | None
) -> Scored:
    subject = loaded_subject(target, overrides, reference)
    tokenizer = load_tokenizer(subject.model)
    store = _store(subject, sources, tokenizer)
    policy = load_on_device(subject, target)
    copy = subject.load_reference()
    if copy is not None:
        copy.model.to(policy.device)
    objective, notes = _objective(subject, store)
    plan = StepPlan(
        records_per_source=(len(store),),
        source_weights=(1.0,),
        groups_per_step=len(store),
        seed=0,
        shuffle=False,
    )
    steps = steps_of(subject.recipe, store, plan, layout_of(policy)[0])
    typer.echo(f"scoring {len(store):,} groups by {target}")
    return Scored(
        target=target,
        objective=None if objective is None else objective.model_dump(mode="json"),
        reference=None if copy is None else reference_name(subject),
        notes=notes if copy is not None else (*notes, _NO_REFERENCE),
        held_out=_held_out(policy, copy, objective, steps),
        ids=store.ids,
        prompts=tuple(map(str, store.prompt_hashes.tolist())),
    )


def _store(
    subject: Subject, sources: tuple[SourceSection, ...], tokenizer: PreTrainedTokenizerBase
) -> TokenStore:
    """The pairs as this model reads them; what is longer than its max_length is dropped."""
    data = subject.recipe.data
    section = DataSection(sources=sources, max_length=data.max_length, cache_dir=data.cache_dir)
    return prepare_data(section, tokenizer).train


def _objective(subject: Subject, store: TokenStore) -> tuple[Objective | None, tuple[str, ...]]:
    """What gives the objective's own rewards; None, and why, where nothing does."""
    objective = subject.recipe.objective
    if subject.run_folder is None:
        return None, ("no recipe says what it was trained by, so objective_accuracy is unknown.",)
    if any(part.needs_token_weights for part in objective.parts()) and not store.has_token_weights:
        return None, (f"{objective.name} reads token_weights, which the data has not.",)
    return objective, ()


def _held_out(
    policy: Any, reference: FrozenCopy | None, objective: Objective | None, steps: StepDataset
) -> HeldOut:
    """What models say of all groups, one at a time; drifts are against the reference."""
    found = FixedGroups(steps, len(steps.store)).score(
        objective, policy, reference, Accelerator(cpu=policy.device.type == "cpu"), None
    )
    return replace(found, start_logps=found.reference_logps)


def _numbers(
    each: Scored, shared: set[str], of_record: dict[str, str] | None
) -> dict[str, Estimate]:
    """Over the groups that all models have."""
    rows = torch.tensor([row for row, name in enumerate(each.ids) if name in shared])
    chosen = {
        name: values[rows]
        for name in HeldOut.__slots__
        if (values := getattr(each.held_out, name)) is not None
    }
    kept = rows.tolist()
    return pair_numbers(
        replace(each.held_out, **chosen),
        subsets=None if of_record is None else [of_record[each.ids[row]] for row in kept],
        clusters=[each.prompts[row] for row in kept],
    )


def _names(targets: Sequence[str]) -> list[str]:
    """Last parts of paths, or whole ones where these are the same."""
    short = [Path(target).name or target for target in targets]
    return [
        target if short.count(name) > 1 else name
        for target, name in zip(targets, short, strict=True)
    ]
