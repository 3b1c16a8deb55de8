"""`prefopt diagnose`: a policy's gradients and rankings, as a page and as numbers."""

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import typer
from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from prefopt import __version__
from prefopt.commands.diagnose_subject import Subject, groups_of, subject_of
from prefopt.commands.hush import hush
from prefopt.commands.parts import groups_per_step, steps_of
from prefopt.data.plan import StepPlan
from prefopt.data.store import TokenStore
from prefopt.diagnostics.ranking import kl_of_samples
from prefopt.diagnostics.report import write_report
from prefopt.errors import UserError
from prefopt.evaluation.kl import sample_and_score
from prefopt.models.head import layout_of
from prefopt.models.load import check_model_sections
from prefopt.models.reference import FrozenCopy
from prefopt.models.tokenizer import load_tokenizer
from prefopt.train.checkpoint import METRICS_FILE
from prefopt.train.diagnosis import Diagnosis
from prefopt.train.durable import clear_staging, failed_writes_are_one_line, write_whole
from prefopt.train.steps import StepDataset

NUMBERS_FILE = "report.json"
_MOST_NEW_TOKENS = 256


def run(
    target: str,
    overrides: Sequence[str],
    *,
    data: Sequence[str],
    objective: str | None,
    reference: str | None,
    num_groups: int,
    num_token_maps: int,
    num_samples: int,
    is_verified: bool,
    seed: int,
    output: Path | None,
) -> None:
    """Measure, and write report.html and report.json; see `prefopt diagnose --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    hush()
    subject = subject_of(target, overrides, data=data, objective=objective, reference=reference)
    if num_samples and subject.reference is None:
        raise UserError("--samples needs a reference to compare with. Add --reference MODEL.")
    if num_samples == 1:
        raise UserError("--samples: one sample has no standard error. Give 0, or 2 and more.")
    folder = output or (Path(target) if Path(target).is_dir() else Path()) / "diagnosis"
    check_model_sections(subject.model, subject.adapter, subject.reference)
    tokenizer = load_tokenizer(subject.model)
    store = groups_of(subject, data, tokenizer)
    set_seed(seed)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    policy = subject.load_policy()
    if subject.model.quantization is None:
        policy.to(accelerator.device)
    copy = subject.load_reference()
    notes = _notes_on(subject, policy, copy)
    if copy is None and subject.recipe.objective.needs_reference:
        # At the start of a run the policy is its own reference.
        copy = FrozenCopy(subject.load_policy())
    if copy is not None:
        copy.prepare(accelerator)
    steps = _steps(subject, store, num_groups, seed, policy)
    typer.echo(f"measuring {min(num_groups, len(store)):,} groups of {len(store):,}")
    found = Diagnosis(
        policy,
        subject.recipe.objective,
        copy,
        steps,
        num_groups,
        accelerator,
        normalises=subject.recipe.training.normalise_gradients,
    )
    diagnosis = _diagnosis(subject, found, store, tokenizer, num_token_maps, is_verified)
    if is_verified and not found.can_verify:
        notes.append(
            "Predictions are not verified: trained weights are in bfloat16, which rounds a small "
            "step away. Add model.dtype=float32."
        )
    diagnosis["notes"] = [*notes, *diagnosis["notes"]]
    if num_samples:
        assert copy is not None
        mean, error = _kl(
            policy, copy, steps, num_samples, subject.recipe.data.max_length, tokenizer, seed
        )
        diagnosis["ranking"]["kl"] = {"value": mean, "num": num_samples, "error": error}
    else:
        diagnosis["notes"].append("KL on the model's own samples is left out; ask with --samples.")
    diagnosis |= {
        "prefopt": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["prefopt", *sys.argv[1:]]),
        "model": target,
        "data": list(data) or [source.path for source in subject.recipe.data.sources],
        "seed": seed,
    }
    _write(diagnosis, folder)


def _notes_on(
    subject: Subject, policy: PreTrainedModel | PeftModel, reference: FrozenCopy | None
) -> list[str]:
    notes = []
    if reference is not None:
        notes.append("Drifts are against the reference.")
    elif subject.recipe.objective.needs_reference:
        notes.append(
            "No reference is known: coefficients are those at the start of a run from this model, "
            "where all log-ratios are 0. Give --reference to know more."
        )
    else:
        notes.append("No reference is known, so drifts, flips and rewards by log-ratios are not.")
    if subject.adapter is not None:
        notes.append("Gradients are those of the adapter, which alone is trained.")
    if subject.model.quantization is not None:
        notes.append("Weights in 4 bits are not trained and have no part in any Gram.")
    return notes


def _steps(
    subject: Subject,
    store: TokenStore,
    num_groups: int,
    seed: int,
    policy: PreTrainedModel | PeftModel,
) -> StepDataset:
    plan = StepPlan(
        records_per_source=(len(store),),
        source_weights=(1.0,),
        groups_per_step=num_groups,
        seed=seed,
    )
    return steps_of(subject.recipe, store, plan, layout_of(policy)[0])


def _diagnosis(
    subject: Subject,
    found: Diagnosis,
    store: TokenStore,
    tokenizer: PreTrainedTokenizerBase,
    num_token_maps: int,
    is_verified: bool,
) -> dict[str, Any]:
    recipe = subject.recipe
    given = recipe.training.arguments.get("learning_rate")
    learning_rate = None if given is None or subject.run_folder is None else float(given)
    verified = found.verification() if is_verified else None
    realised = {} if verified is None else verified[1]
    rate = learning_rate if verified is None else verified[0]["learning_rates"][-1]
    groups = []
    for group in found.worst:
        facts = group.facts(1.0 if rate is None else rate, realised.get(group.number))
        record = store[group.number]
        texts = {
            "prompt": tokenizer.decode(record.prompt_ids),
            "responses": [tokenizer.decode(ids) for ids in record.response_ids],
        }
        groups.append({**facts, **texts})
    maps, notes = found.token_maps(
        num_token_maps, lambda ids: [str(tokenizer.decode([each])) for each in ids]
    )
    reference = subject.reference
    path = None if reference is None else reference.path or recipe.model.path
    return {
        "num_trainable": found.num_trainable,
        "num_measured": found.num_measured,
        "missing": list(found.groups[0].found.gram.missing),
        "objective": recipe.objective.model_dump(mode="json"),
        "reference": path,
        "num_groups": len(found.groups),
        "num_pairs": found.num_pairs,
        "learning_rate": learning_rate,
        "notes": [*found.notes, *notes],
        "ranking": found.ranking(),
        "entanglement": found.entanglement(),
        "step": found.step(groups_per_step(recipe)),
        "rate_of_changes": rate,
        "verification": None if verified is None else verified[0],
        "groups": groups,
        "token_maps": maps,
        "training": _training(subject.run_folder),
    }


def _training(run_folder: Path | None) -> list[dict[str, Any]]:
    """What was measured while the run was trained."""
    file = None if run_folder is None else run_folder / METRICS_FILE
    if file is None or not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "diagnostics/seconds" in line]


def _kl(
    policy: PreTrainedModel | PeftModel,
    reference: FrozenCopy,
    steps: StepDataset,
    num_samples: int,
    max_length: int,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> tuple[float, float]:
    """KL(policy || reference) on answers of the policy itself, in nats, and its standard error."""
    numbers = steps.plan.groups(0, 0)
    start: Any = reference.model
    rows = []
    for i in range(num_samples):
        prompt = steps.store[int(numbers[i % len(numbers)])].prompt_ids.tolist()
        rows += sample_and_score(
            policy,
            start,
            tokenizer,
            [(str(i), prompt)],
            num_samples=1,
            max_new_tokens=max(1, min(_MOST_NEW_TOKENS, max_length - len(prompt))),
            seed=seed,
        )
    return kl_of_samples(
        torch.tensor([row.policy_logp for row in rows]),
        torch.tensor([row.reference_logp for row in rows]),
    )


def _write(diagnosis: dict[str, Any], folder: Path) -> None:
    with failed_writes_are_one_line(folder / NUMBERS_FILE):
        page = write_report(diagnosis, folder)
        write_whole(folder / NUMBERS_FILE, json.dumps(diagnosis, indent=1) + "\n")
        clear_staging(folder)
    typer.echo(f"report in {page}, numbers in {folder / NUMBERS_FILE}")
