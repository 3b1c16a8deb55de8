"""What becomes of a run's reference at its start: log-probs from the cache, or a live model."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.data.shard import Shard
from prefopt.models.reference import CachedReference, FrozenCopy, Reference
from prefopt.models.section import ReferenceSection
from prefopt.train.precompute import CachedSource, Scorer, check_sample, compute_missing
from prefopt.train.progress import clock
from prefopt.train.reference_identity import ReferenceIdentity, cached_sources
from prefopt.train.steps import StepDataset
from prefopt.train.trainer import PreferenceTrainer

Say = Callable[[str], None]
"""Prints a line, on the first process only."""

_SECONDS_BETWEEN_LINES = 60


def scorer_of(
    identity: ReferenceIdentity,
    accelerator: Accelerator,
    live: Reference,
    policy: nn.Module,
    tokens_per_micro_batch: int,
) -> Scorer:
    """What computes the log-probs, after the reference has been prepared."""
    model = live.model if isinstance(live, FrozenCopy) else policy
    is_low = accelerator.mixed_precision == "bf16" or any(
        parameter.dtype == torch.bfloat16 for parameter in model.parameters()
    )
    return Scorer(
        accelerator=accelerator,
        reference=live,
        policy=policy,
        layout=identity.layout,
        tokens_per_micro_batch=tokens_per_micro_batch,
        is_low_precision=is_low,
    )


class ReferenceStart(TrainerCallback):
    """Decides, once policy and reference are placed, and lets a run read the cache.

    A reference with weights of its own is dealt with before the policy is wrapped, so that it is
    gone before the optimiser takes its memory; the policy with its adapter off only after that.
    """

    def __init__(
        self,
        trainer: PreferenceTrainer,
        section: ReferenceSection,
        identity: ReferenceIdentity | None,
        *,
        began_cached: bool | None,
        say: Say,
    ) -> None:
        """Decides now, or leaves it to the start of training.

        Args:
            trainer: what trains; its reference and data are exchanged.
            section: what the recipe says.
            identity: of the reference; None if the recipe switches the cache off.
            began_cached: how a run that goes on began, so that it ends in the same bits; None for
                a new run.
            say: prints a line.
        """
        self._trainer = trainer
        self._mode = section.cache
        self._identity = identity
        self._began_cached = began_cached
        self._say = say
        if isinstance(trainer.reference, FrozenCopy):
            self._settle()
        else:
            # Before the callback that takes the time of training.
            trainer.callback_handler.callbacks.insert(0, self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The policy is wrapped and, where a run goes on, loaded."""
        self._settle()

    def _settle(self) -> None:
        trainer, identity = self._trainer, self._identity
        if identity is None:
            self._say("reference: live (reference.cache: off)")
            return
        reason = self._why_never(identity)
        if reason is not None:
            self._say(f"reference: live ({reason})")
            return
        live = trainer.reference
        assert live is not None
        sources = cached_sources(identity, trainer.accelerator, _shards(self._datasets()))
        if not self._complete(sources, identity, live):
            return
        columns = check_sample(sources, self._scorer(identity, live))
        by_shard = {
            source.shard.folder: column for source, column in zip(sources, columns, strict=True)
        }
        for dataset in self._datasets():
            shards = dataset.store.shards
            dataset.store = dataset.store.with_reference([by_shard[s.folder] for s in shards])
        is_still_needed = trainer.objective.mismatches_responses
        trainer.reference = CachedReference(live if is_still_needed else None)
        del live
        # A model whose forward is replaced refers to itself.
        gc.collect()

    def _complete(
        self, sources: Sequence[CachedSource], identity: ReferenceIdentity, live: Reference
    ) -> bool:
        """Whether all log-probs are in the cache, now or after they have been computed."""
        total, missing = count_records(sources, self._say)
        if missing == 0:
            self._say(f"reference: {total:,} records from the cache")
            return True
        num_read = _num_groups_read(self._trainer)
        if self._mode == "auto" and not self._began_cached and num_read < missing:
            self._say(
                f"reference: live (the run reads {num_read:,} records, and {missing:,} are not in "
                "the cache)"
            )
            return False
        compute_all(sources, self._scorer(identity, live), missing, total, self._say)
        return True

    def _scorer(self, identity: ReferenceIdentity, live: Reference) -> Scorer:
        trainer = self._trainer
        return scorer_of(
            identity,
            trainer.accelerator,
            live,
            trainer.model_wrapped,
            trainer.tokens_per_micro_batch,
        )

    def _why_never(self, identity: ReferenceIdentity) -> str | None:
        if self._trainer.objective.needs_reference_distribution:
            return "the objective reads whole distributions, which are not kept"
        if self._mode == "auto" and self._began_cached is False:
            return "as the run began"
        return "log-probs in float64 would be rounded" if identity.is_wide else None

    def _datasets(self) -> list[StepDataset]:
        datasets = (self._trainer.train_dataset, self._trainer.eval_dataset)
        return [dataset for dataset in datasets if isinstance(dataset, StepDataset)]


def count_records(sources: Sequence[CachedSource], say: Say) -> tuple[int, int]:
    """How many records there are, and of how many the log-probs are missing; says what is damaged.

    Every piece is read and its checksum compared.
    """
    total = missing = 0
    for source in sources:
        states = source.states()
        total += len(source.shard)
        missing += source.num_records_in([p for p, s in enumerate(states) if s != "whole"])
        if broken := states.count("broken"):
            say(
                f"reference: {broken} of {len(states)} pieces in {source.folder.folder} are "
                "damaged and not used"
            )
    return total, missing


def compute_all(
    sources: Sequence[CachedSource], scorer: Scorer, missing: int, total: int, say: Say
) -> None:
    """Compute what is missing of every source, so many records in all, and say how far it is.

    Raises:
        UserError: as `compute_missing` does.
    """
    known = f"{total - missing:,} records from the cache, " if missing < total else ""
    say(f"reference: {known}computing log-probs of {missing:,} records once")
    began = last = time.monotonic()
    done = 0

    def count(num: int) -> None:
        nonlocal done, last
        done += num
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        left = (now - began) / done * (missing - done)
        say(
            f"reference: {done:,} of {missing:,} records, elapsed {clock(now - began)}, "
            f"left {clock(left)}"
        )

    # In the order of their names: runs that share two sources cannot wait for each other.
    for source in sorted(sources, key=lambda source: source.folder.folder):
        compute_missing(source, scorer, say=say, on_records=count)


def _num_groups_read(trainer: PreferenceTrainer) -> int:
    """Groups in all optimiser steps of the run, from its first on, and in one evaluation."""
    dataset, args = trainer.train_dataset, trainer.args
    assert isinstance(dataset, StepDataset)
    plan = dataset.plan
    num_epochs = args.num_train_epochs
    if args.max_steps > 0:
        num_epochs = args.max_steps / plan.steps_per_epoch
    held_out = trainer.eval_dataset if str(args.eval_strategy) != "no" else None
    num_held_out = len(held_out) if isinstance(held_out, StepDataset) else 0
    return math.ceil(num_epochs * plan.groups_per_epoch) + num_held_out


def _shards(datasets: Sequence[StepDataset]) -> list[Shard]:
    """The sources of training and evaluation, each once."""
    return list({shard.folder: shard for d in datasets for shard in d.store.shards}.values())
