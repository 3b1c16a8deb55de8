"""The numbers of `prefopt plan`: a recipe's model, data and settings under each mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import TrainingArguments

from prefopt.commands.plan_inputs import PlannedReference, planned_lengths, planned_reference
from prefopt.config import Recipe
from prefopt.data.lengths import Lengths
from prefopt.models.blueprint import Blueprint, Counts, draw_up, stored_dtype
from prefopt.models.dry_run import Row
from prefopt.models.head import layout_of
from prefopt.models.load import check_model_sections
from prefopt.train.footprint import (
    MODES,
    Footprint,
    Mode,
    Pass,
    Precision,
    Split,
    bytes_sent,
    footprint,
    optimizer_of,
)
from prefopt.train.passes import pass_of
from prefopt.train.typical_step import TypicalStep, mean_tokens, typical_step
from prefopt.train.work import Work

GIB = 2**30
RECORDS_IF_UNKNOWN = 10_000
# Contexts of CUDA and NCCL, workspaces, and what the allocator cannot give out.
RESERVE = 3 * GIB // 2
ON_ONE_GPU: tuple[Mode, ...] = ("single", "zero3_offload")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What is planned for; H100 SXM if nothing else is said."""

    num_gpus: int
    gpu_memory: float = 80.0
    """Of each, in GiB."""
    peak_tflops: float = 989.4
    """Of each, for dense products in bfloat16."""
    utilization: float = 0.35
    """Share of the peak that training reaches."""


def modes_on(num_gpus: int) -> tuple[Mode, ...]:
    """What can be chosen on so many GPUs."""
    return MODES if num_gpus > 1 else ON_ONE_GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class ModePlan:
    """One mode."""

    mode: Mode
    num_gpus: int
    """1 for the mode `single`, however many there are."""
    num_micro_batches: int
    """The most that a GPU has in a step."""
    memory: Footprint
    """Bytes of a GPU, with gradient checkpointing if the recipe says so."""
    total: int
    """Bytes of a GPU, the reserve included."""
    fits: bool
    total_otherwise: int
    """With gradient checkpointing if the recipe has none, without if it has."""
    fits_otherwise: bool
    bytes_sent: int
    """By each GPU, in a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that is known before a run."""

    model: str
    hardware: Hardware
    counts: Counts
    layout: str
    is_recomputed: bool
    """Whether the recipe has gradient checkpointing."""
    groups_per_step: int
    step: TypicalStep
    operations_per_step: float
    seconds_per_step: float
    num_records: int | None
    """None where nobody has counted them."""
    reference: str
    """Where its log-probs come from, as a clause."""
    seconds_of_cache: float | None
    """To compute the reference's log-probs once, of all records or of `RECORDS_IF_UNKNOWN`."""
    modes: tuple[ModePlan, ...]
    notes: tuple[str, ...]
    """What the numbers rest on, beside the assumptions of all plans."""


def make_plan(
    recipe: Recipe, modes: Sequence[Mode], hardware: Hardware, *, lengths: Lengths | None = None
) -> Plan:
    """What a recipe would take.

    Args:
        recipe: the model, its data and how to train.
        modes: under which.
        hardware: on what.
        lengths: of the data; None looks them up, or assumes some where that is not possible.

    Raises:
        UserError: if there is no configuration of a causal language model, or the adapter or the
            layout does not fit it.
    """
    check_model_sections(recipe.model, recipe.adapter, recipe.reference)
    dtype = stored_dtype(recipe.model)
    blueprint = draw_up(recipe.model, recipe.adapter, dtype)
    layout, why_padded = layout_of(blueprint.model)
    if lengths is None:
        lengths, said_by = planned_lengths(recipe)
    else:
        said_by = f"lengths are given: {lengths.said_by}"
    reference = planned_reference(recipe, blueprint.counts, dtype)
    planner = _Planner(recipe, hardware, blueprint, lengths, reference)
    step = planner.step(hardware.num_gpus)
    operations = planner.operations(step)
    notes = [
        said_by,
        *([f"a padded row per response, since {why_padded}"] if why_padded else []),
        *planner.notes(),
    ]
    return Plan(
        model=recipe.model.path,
        hardware=hardware,
        counts=blueprint.counts,
        layout=layout,
        is_recomputed=planner.is_recomputed,
        groups_per_step=planner.groups_per_step,
        step=step,
        operations_per_step=operations,
        seconds_per_step=planner.seconds(operations),
        num_records=lengths.num_records,
        reference=reference.what,
        seconds_of_cache=planner.seconds_of_cache() if reference.is_cached else None,
        modes=tuple(map(planner.mode, modes)),
        notes=tuple(notes),
    )


class _Planner:
    """Knows the recipe's model and data, and answers for any number of GPUs."""

    def __init__(
        self,
        recipe: Recipe,
        hardware: Hardware,
        blueprint: Blueprint,
        lengths: Lengths,
        reference: PlannedReference,
    ) -> None:
        given = recipe.training.arguments
        self._recipe, self._hardware, self._blueprint = recipe, hardware, blueprint
        self._lengths, self._reference = lengths, reference
        self._layout = layout_of(blueprint.model)[0]
        self.is_recomputed = bool(
            given.get("activation_checkpointing", given.get("gradient_checkpointing"))
        )
        self.groups_per_step = sum(map(recipe.training.groups_of, recipe.data.roles or [""]))
        optim = given.get("optim", TrainingArguments.default_optim)
        self._optim = str(getattr(optim, "value", optim))
        dtypes = {w.requires_grad: w.dtype.itemsize for w in blueprint.model.parameters()}
        self._precision = Precision(
            stored=dtypes.get(False, dtypes[True]),
            trained=dtypes[True],
            is_bf16=bool(given.get("bf16")),
        )
        self._passes: dict[tuple[Row, bool, bool], Pass] = {}
        counts = blueprint.counts
        self._work = Work(
            num_body_weights=counts.body,
            num_head_weights=counts.head,
            attention_width=counts.attention_width,
            num_adapter_weights=counts.adapter,
        )

    def step(self, num_gpus: int) -> TypicalStep:
        """A step over so many GPUs."""
        return typical_step(
            self._lengths,
            groups_per_step=self.groups_per_step,
            num_ranks=num_gpus,
            tokens_per_micro_batch=self._recipe.training.tokens_per_micro_batch,
            layout=self._layout,
        )

    def operations(self, step: TypicalStep) -> float:
        """Floating-point operations of a step, recomputation and passes without gradient too."""
        operations = self._work.training(step.tokens)
        operations += self._num_passes * self._work.forward(step.tokens)
        if self.is_recomputed:
            operations += self._work.recomputation(step.tokens)
        return operations

    def seconds(self, operations: float) -> float:
        """How long all GPUs take for so many operations."""
        hardware = self._hardware
        rate = hardware.num_gpus * hardware.peak_tflops * 1e12 * hardware.utilization
        return operations / rate

    def seconds_of_cache(self) -> float:
        """How long the reference takes for all records, or for some if nobody has counted them."""
        tokens = mean_tokens(self._lengths, self._layout)
        num_records = self._lengths.num_records or RECORDS_IF_UNKNOWN
        return self.seconds(num_records * self._work.forward(tokens))

    def notes(self) -> list[str]:
        """What else the numbers rest on."""
        notes = []
        if not optimizer_of(self._optim)[1]:
            notes.append(f"training.optim: {self._optim} is counted as AdamW")
        if not self._precision.is_bf16 and self._precision.stored > 2:
            notes.append("the recipe computes in float32, far below the peak: set training.bf16")
        if self._recipe.model.quantization:
            notes.append("4-bit weights are counted and not measured")
        return notes

    def mode(self, mode: Mode) -> ModePlan:
        """The recipe under a mode."""
        num_gpus = 1 if mode == "single" else self._hardware.num_gpus
        step = self.step(num_gpus)
        split = Split(
            mode=mode,
            num_gpus=num_gpus,
            precision=self._precision,
            optimizer=optimizer_of(self._optim)[0],
            num_micro_batches=step.num_micro_batches,
            reference_weights=self._reference.weights,
        )
        counts = self._blueprint.counts
        memory, otherwise = (
            footprint(counts, split, self._pass(split, step, is_recomputed=is_recomputed))
            for is_recomputed in (self.is_recomputed, not self.is_recomputed)
        )
        available = self._hardware.gpu_memory * GIB
        return ModePlan(
            mode=mode,
            num_gpus=num_gpus,
            num_micro_batches=step.num_micro_batches,
            memory=memory,
            total=memory.total + RESERVE,
            fits=memory.total + RESERVE <= available,
            total_otherwise=otherwise.total + RESERVE,
            fits_otherwise=otherwise.total + RESERVE <= available,
            bytes_sent=bytes_sent(counts, split, num_forward_passes=self._num_passes),
        )

    @property
    def _num_passes(self) -> int:
        """Passes without gradient that each token goes through."""
        return self._reference.num_passes + self._recipe.objective.couples_groups

    def _pass(self, split: Split, step: TypicalStep, *, is_recomputed: bool) -> Pass:
        """What a micro-batch takes, run once for all modes that compute in the same types."""
        is_cast = split.precision.under(split.mode) != split.precision
        key = step.row, is_cast, is_recomputed
        if key not in self._passes:
            self._passes[key] = pass_of(
                self._cast_blueprint if is_cast else self._blueprint,
                step.row,
                is_autocast=self._precision.is_bf16 and not is_cast,
                is_recomputed=is_recomputed,
            )
        return self._passes[key]

    @cached_property
    def _cast_blueprint(self) -> Blueprint:
        recipe = self._recipe
        return draw_up(recipe.model, recipe.adapter, torch.bfloat16, is_cast=True)
