"""Entanglement, displacement and ranking, measured every so many steps while a run trains.

Before a step: the Gram of some of its groups, and what their part of the loss will do to them by
first order. After it: what has become of the same groups, and how a few fixed ones are ranked.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.diagnostics.gram import GramMeter, without_dropout
from prefopt.diagnostics.ranking import HeldOut, ranking_metrics
from prefopt.train.checkpoint import run_folder_of
from prefopt.train.diagnostics_section import DiagnosticsSection
from prefopt.train.durable import failed_writes_are_one_line, write_whole
from prefopt.train.fixed_groups import FixedGroups, reward_per_nat
from prefopt.train.group_numbers import add_group
from prefopt.train.influence import GroupInfluence, InfluenceMeter, why_no_influence
from prefopt.train.metrics import StepSums, means_of
from prefopt.train.processes import on_first_process
from prefopt.train.share import StepShare
from prefopt.train.steps import StepDataset
from prefopt.train.trainer import PreferenceTrainer
from prefopt.types import GroupBatch

START_FILE = "diagnostics_start.json"
"""In the run's folder: what the policy said of the fixed groups before the first step."""


@dataclass(frozen=True, slots=True)
class _Measured:
    batch: GroupBatch
    found: GroupInfluence
    is_filler: bool


class StepDiagnostics(TrainerCallback):
    """Measures around some steps of a run; no update depends on it."""

    def __init__(
        self, trainer: PreferenceTrainer, section: DiagnosticsSection, say: Callable[[str], None]
    ) -> None:
        """Takes what trains, what the recipe says, and what prints a line on the first process."""
        assert isinstance(trainer.train_dataset, StepDataset)
        self._trainer, self._section, self._say = trainer, section, say
        self._data = trainer.train_dataset
        held_out = trainer.eval_dataset
        self._fixed = FixedGroups(
            held_out if isinstance(held_out, StepDataset) else self._data, section.groups
        )
        self._meter: InfluenceMeter | None = None
        self._start: Float[Tensor, "G K"] | None = None
        self._measured: list[_Measured] = []
        self._has_said_none_fits = False
        self._learning_rate = 0.0
        self._seconds = 0.0
        self._began_training = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what is left out, and find out where the policy started."""
        trainer, objective = self._trainer, self._trainer.objective
        self._began_training = time.perf_counter()
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=True)
        self._meter = InfluenceMeter(
            objective,
            GramMeter(model),
            trainer.reference,
            trainer.model_wrapped,
            normalises=trainer.norms is not None,
        )
        reason = why_no_influence(objective)
        if reason is not None:
            self._say(f"diagnostics: no conditions and predictions, since {reason}")
        if self._fixed.num_pairs == 0:
            self._say("diagnostics: no cosines, conditions and rankings, since there are no pairs")
        self._start = self._start_logps(args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure some groups of a step that is about to be learned from."""
        step, every = state.global_step, self._section.every
        self._measured = []
        if step > 0 and (step + 1) % every > 0 and step + 1 < state.max_steps:
            return
        began = time.perf_counter()
        key = divmod(step, self._data.plan.steps_per_epoch)
        share = self._data[key]
        statistics = self._statistics(share)
        numbers = self._fitting(self._data.plan.groups(*key))
        rank, num_ranks = self._data.rank, self._data.num_ranks
        for first in range(0, len(numbers), num_ranks):
            is_filler = first + rank >= len(numbers)
            number = numbers[0 if is_filler else first + rank]
            batch = self._data.group(number, key).to(args.device)
            assert self._meter is not None
            found = self._meter.measure(batch, share.denominators, statistics)
            self._measured.append(_Measured(batch, found, is_filler))
        self._learning_rate = self._trainer._get_learning_rate()
        self._spent(began)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See what became of them, and log."""
        if not self._measured:
            return
        began = time.perf_counter()
        missing = self._measured[0].found.gram.missing
        if missing and state.global_step == 1:
            self._say(f"diagnostics: Grams are without {', '.join(missing)}, which no layer tells")
        numbers = self._step_numbers() | self._ranking()
        self._spent(began)
        logs = {f"diagnostics/{name}": value for name, value in numbers.items()}
        # Whoever logs takes the wish for the step's own line back.
        should_log = control.should_log
        self._trainer.log({**logs, "diagnostics/seconds": self._seconds})
        control.should_log = should_log

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what it took."""
        whole = time.perf_counter() - self._began_training
        share = self._seconds / whole
        self._say(f"diagnostics: {self._seconds:.1f} s, {share:.1%} of the time of training")

    def _spent(self, began: float) -> None:
        self._seconds += time.perf_counter() - began
        self._trainer._pause(began)

    def _fitting(self, numbers: Int[np.ndarray, " S"]) -> list[int]:
        """The first groups of a step that one forward pass may hold, a prompt for each response."""
        fitting = self._data.fitting(numbers)
        if len(fitting) == 0 and not self._has_said_none_fits:
            self._has_said_none_fits = True
            self._say(
                "diagnostics: no group of this step is looked at, since none fits "
                "training.tokens_per_micro_batch with a prompt for each of its responses; raise it "
                "to see some"
            )
        chosen: list[int] = fitting[: self._section.groups].tolist()
        return chosen

    def _statistics(self, share: StepShare) -> Float[Tensor, "S C"] | None:
        """Of all groups of the step, also where its one micro-batch needs none."""
        trainer, objective = self._trainer, self._trainer.objective
        if not objective.couples_groups:
            return None
        if not share.statistic_batches and not objective.mismatches_responses:
            share = replace(
                share,
                statistic_batches=share.micro_batches,
                statistic_positions=share.positions,
                statistic_large=share.large,
            )
        with without_dropout(trainer.model_wrapped):
            return trainer._step_statistics(trainer.model_wrapped, share)

    def _step_numbers(self) -> dict[str, float]:
        assert self._meter is not None
        sums = StepSums()
        for each in self._measured:
            realised = self._meter.logps(each.batch) - each.found.logps
            add_group(
                sums,
                each.batch,
                each.found,
                realised,
                learning_rate=self._learning_rate,
                is_filler=each.is_filler,
            )
        packed = self._trainer.accelerator.reduce(sums.pack(), reduction="sum")
        return means_of(sums.read(packed.tolist()))

    def _ranking(self) -> dict[str, float]:
        if self._fixed.num_pairs == 0:
            return {}
        held_out = self._score(self._start)
        found = ranking_metrics(held_out, beta=reward_per_nat(held_out))
        return {name: value for name, (value, _) in found.items()}

    def _score(self, start_logps: Float[Tensor, "G K"] | None) -> HeldOut:
        trainer = self._trainer
        return self._fixed.score(
            trainer.objective,
            trainer.model_wrapped,
            trainer.reference,
            trainer.accelerator,
            start_logps,
        )

    def _start_logps(
        self, args: TrainingArguments, state: TrainerState
    ) -> Float[Tensor, "G K"] | None:
        """Of the fixed groups, now or from the run's folder where a run goes on."""
        file = run_folder_of(args) / START_FILE
        if state.global_step == 0:
            began = self._score(None).policy_logps
            if state.is_world_process_zero:
                with failed_writes_are_one_line(file):
                    write_whole(file, json.dumps(began.tolist()) + "\n")
            return began
        known = on_first_process(
            lambda: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        )
        start = None if known is None else torch.tensor(known, dtype=torch.float64)
        if start is None or tuple(start.shape) != self._fixed.shape:
            self._say("diagnostics: no drift, since the run began without these groups")
            return None
        return start
