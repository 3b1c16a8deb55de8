"""Training steps of prefopt against those of trl, in turns, after a gate."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmark_arms import ARMS, LORA_RANK, Evidence, Job, Turn, divisor_up_to
from benchmark_gate import BFLOAT16, FLOAT32, compare, objections, wrong_path
from benchmark_models import linear_shapes, save_model, tokens_of, work_of
from benchmark_numbers import LEAST_REPEATS, all_ratios, cache_numbers, quiet_repeats, rates, roof
from benchmark_process import Process
from benchmark_workloads import Workload, load_workloads, write_rows

QUICK_WORKLOADS, QUICK_ARMS = ("hh", "tldr"), ("T0", "T1", "U2", "U4")
# Dense bfloat16 of an H100 or H200 with SXM.
PEAK_OF_H100 = 989.4e12
LIVE, CACHED = "U2", "U4"
FIRST = "T0"
"""What all others must agree with."""
CHECK_DIVISOR, PAIRS_OF_CHECK = 4, 6
# Libraries neither look things up nor report. In all arms glibc keeps the memory that tensors
# leave: otherwise every tensor is a new map, and its page faults can cost more than the arithmetic.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**34),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "CI": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

Say = Callable[[str], None]
Turns = dict[str, list[Turn]]
"""Of each arm, a turn per repeat."""
Timed = tuple[dict[str, dict[str, float]], Turns, list[float]]
"""Memory of each arm before its first step, turns, and roofs before, between and after repeats."""


class GateError(Exception):
    """An arm computes something else than the first one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How much is timed, and on what."""

    workloads: tuple[str, ...] | None = None
    """None: all."""
    arms: tuple[str, ...] = tuple(ARMS)
    size: str = "7M"
    device: str = "cpu"
    num_threads: int = 2
    groups_factor: int = 1
    """Times the committed number of groups per step."""
    num_steps: int | None = None
    """Of one epoch, which is what a repeat trains; None: as many as stand for the workload."""
    num_repeats: int = 5
    num_warm_up: int = 1
    """Steps of each process that are not counted."""
    length_divisor: int = 1
    """1 but in tests."""

    @property
    def is_cuda(self) -> bool:
        """Whether an accelerator is timed, in bfloat16."""
        return self.device == "cuda"

    @property
    def is_lora(self) -> bool:
        """Whether an adapter is trained, on bfloat16 weights."""
        return self.size.endswith("-lora")

    @property
    def is_low_precision(self) -> bool:
        """Whether anything is rounded to bfloat16."""
        return self.is_cuda or self.is_lora


def train(protocol: Protocol, say: Say = print) -> dict[str, Any]:
    """All workloads, one after the other.

    Raises:
        GateError: if an arm may not be timed.
    """
    os.environ.update(_ENVIRONMENT, OMP_NUM_THREADS=str(protocol.num_threads))
    torch.set_num_threads(protocol.num_threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dtype = torch.bfloat16 if protocol.is_lora else torch.float32
        model = save_model(protocol.size, folder / "model", dtype)
        results = {}
        for workload in load_workloads(protocol.workloads):
            workload = workload.with_larger_steps(protocol.groups_factor)
            num_steps = protocol.num_steps or workload.steps_per_block
            workload = workload.first(num_steps).shortened(protocol.length_divisor)
            say(f"{workload.name}: {workload.what}")
            began = time.perf_counter()
            results[workload.name] = _Measurement(protocol, workload, model, folder, say).run()
            say(f"{workload.name}: {time.perf_counter() - began:.0f} s in all")
    return {"protocol": asdict(protocol), "workloads": results}


class _Measurement:
    """One workload, all arms."""

    def __init__(
        self, protocol: Protocol, workload: Workload, model: Path, folder: Path, say: Say
    ) -> None:
        self.protocol = protocol
        self.workload = workload
        self.say = say
        vocabulary = linear_shapes(protocol.size)[-1][0]
        num_groups = max(1, PAIRS_OF_CHECK // workload.pairs_per_group)
        self.small = workload.one_step(num_groups).shortened(CHECK_DIVISOR)
        rows = write_rows(workload, vocabulary, folder / f"{workload.name}.jsonl")
        rows_of_check = write_rows(self.small, vocabulary, folder / f"{workload.name}-check.jsonl")
        self.jobs = {}
        for name in protocol.arms:
            own = folder / f"{workload.name}-{name}"
            own.mkdir()
            self.jobs[name] = Job(
                arm=ARMS[name],
                model=model,
                rows=rows,
                rows_of_check=rows_of_check,
                groups_per_step=workload.groups_per_step,
                groups_per_step_of_check=self.small.groups_per_step,
                pairs_per_group=workload.pairs_per_group,
                folder=own,
                num_threads=protocol.num_threads,
                device=protocol.device,
                is_lora=protocol.is_lora,
            )

    def run(self) -> dict[str, Any]:
        """Gate, best settings, turns, numbers."""
        if self.protocol.is_cuda:
            return self._run_alone()
        with contextlib.ExitStack() as stack:
            processes = {name: stack.enter_context(Process(job)) for name, job in self.jobs.items()}
            # No time is taken of the checks, so that they may run beside each other.
            for process in processes.values():
                process.send("check")
            agreements = self._gate({name: p.answer() for name, p in processes.items()})
            self._tune(lambda job: processes[job.arm.name].ask("tune"))
            return self._numbers(agreements, *self._turns(processes))

    def _run_alone(self) -> dict[str, Any]:
        """The same with the accelerator to each process: models would not fit beside each other."""

        def ask(job: Job, command: str) -> Any:
            with Process(job) as process:
                return process.ask(command)

        agreements = self._gate({name: ask(job, "check") for name, job in self.jobs.items()})
        self._tune(lambda job: ask(job, "tune"))
        return self._numbers(agreements, *self._turns_of_fresh_processes())

    def _gate(self, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
        """How far every arm is from the first.

        Raises:
            GateError: if one is too far, or did not run what it stands for.
        """
        tolerance = BFLOAT16 if self.protocol.is_low_precision else FLOAT32
        against = []
        for name, each in evidence.items():
            found = objections(evidence[FIRST], each, tolerance)
            found += wrong_path(self.jobs[name].arm, self.small.groups, each.tokens_per_step)
            against += [f"{name}: {objection}" for objection in found]
        if against:
            raise GateError(f"{self.workload.name}: {'; '.join(against)}.")
        agreements = {
            name: asdict(compare(evidence[FIRST], each)) for name, each in evidence.items()
        }
        worst = max(each["logps"] for each in agreements.values())
        self.say(f"  gate passed: log-probs of all arms within {worst:.1e} nats of {FIRST}")
        return agreements

    def _tune(self, best_of: Callable[[Job], int]) -> None:
        """Settle what a tuned arm leaves open, while nothing else runs."""
        for name, job in self.jobs.items():
            if job.arm.is_tuned:
                arm = replace(job.arm, pairs_per_micro_batch=best_of(job))
                self.say(f"  {name}: {arm.pairs_per_micro_batch} pairs per micro-batch")
                self.jobs[name] = replace(job, arm=arm)

    def _turns(self, processes: Mapping[str, Process]) -> Timed:
        """Every arm a step, again and again: what slows the machine down meets all of them."""
        starts = {}
        for name, process in processes.items():
            starts[name] = process.start(self.jobs[name])
            process.steps(self.protocol.num_warm_up)
        turns: Turns = {name: [] for name in processes}
        roofs = [self._roof()]
        for repeat in range(self.protocol.num_repeats):
            steps: Turns = {name: [] for name in processes}
            for _ in range(self.workload.num_steps):
                for name, process in processes.items():
                    steps[name].append(process.steps(1))
            for name, of_repeat in steps.items():
                seconds = [each.seconds[0] for each in of_repeat]
                turns[name].append(replace(of_repeat[-1], seconds=seconds))
            roofs.append(self._roof())
            self._say_repeat(repeat, turns)
        return starts, turns, roofs

    def _turns_of_fresh_processes(self) -> Timed:
        """Every arm an epoch in a process that has the accelerator for itself, again and again."""
        starts: dict[str, dict[str, float]] = {}
        turns: Turns = {name: [] for name in self.jobs}
        roofs = [self._roof()]
        for repeat in range(self.protocol.num_repeats):
            for name, job in self.jobs.items():
                with Process(job) as process:
                    starts[name] = process.start(job)
                    process.steps(self.protocol.num_warm_up)
                    turns[name].append(process.steps(self.workload.num_steps))
            roofs.append(self._roof())
            self._say_repeat(repeat, turns)
        return starts, turns, roofs

    def _roof(self) -> float:
        return roof(linear_shapes(self.protocol.size), self.protocol.device)

    def _say_repeat(self, repeat: int, turns: Turns) -> None:
        seconds = (f"{name} {sum(each[-1].seconds):.2f}" for name, each in turns.items())
        self.say(f"  repeat {repeat + 1}, seconds of an epoch: {', '.join(seconds)}")

    def _numbers(
        self,
        agreements: Mapping[str, Any],
        starts: Mapping[str, dict[str, float]],
        turns: Turns,
        roofs: Sequence[float],
    ) -> dict[str, Any]:
        groups, quiet = self.workload.groups, quiet_repeats(roofs)
        is_quiet = len(quiet) >= LEAST_REPEATS
        used = quiet if is_quiet else list(range(len(roofs) - 1))
        totals = {name: [sum(each[i].seconds) for i in used] for name, each in turns.items()}
        rank = LORA_RANK if self.protocol.is_lora else 0
        operations = work_of(self.protocol.size, rank).training(tokens_of(groups))
        arms = {
            name: {
                "what": job.arm.what,
                "pairs_per_micro_batch": (
                    divisor_up_to(job.arm.pairs_per_micro_batch, job.pairs_per_step)
                    if job.arm.trainer == "trl"
                    else None
                ),
                "agreement": agreements[name],
                # Later processes may find it in the cache.
                "reference_seconds": max(each.reference_seconds for each in turns[name]),
                "mfu": self._mfu(operations, turns[name]),
                "memory_at_start": starts[name],
                "memory": turns[name][-1].memory,
                "seconds_of_steps": [each.seconds for each in turns[name]],
                **rates(totals[name], groups, operations, statistics.median(roofs)),
            }
            for name, job in self.jobs.items()
        }
        return {
            "what": self.workload.what,
            "num_groups": len(groups),
            "groups_per_step": self.workload.groups_per_step,
            "pairs_per_group": self.workload.pairs_per_group,
            "useful_tokens": sum(group.num_unique_tokens for group in groups),
            "floating_point_operations": operations,
            "roofs": list(roofs),
            "repeats_used": used,
            "is_quiet": is_quiet,
            "arms": arms,
            "ratios": all_ratios(totals),
            "cache": self._cache(arms),
        }

    def _mfu(self, operations: float, turns: Sequence[Turn]) -> float | None:
        """Share of what a data sheet says that a GPU does; None on CPUs, where none does."""
        seconds = statistics.median(sum(each.seconds) for each in turns)
        return operations / seconds / PEAK_OF_H100 if self.protocol.is_cuda else None

    def _cache(self, arms: Mapping[str, Any]) -> dict[str, float | None] | None:
        """What the cached reference costs and saves, if both ways were timed."""
        if not {LIVE, CACHED} <= set(arms):
            return None
        live, cached = (arms[name]["seconds_of_epoch"] for name in (LIVE, CACHED))
        return cache_numbers(arms[CACHED]["reference_seconds"], live, cached)
