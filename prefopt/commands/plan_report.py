"""How `prefopt plan` looks."""

from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.commands.plan_numbers import GIB, RECORDS_IF_UNKNOWN, RESERVE, ModePlan, Plan
from prefopt.train.footprint import Footprint
from prefopt.train.progress import clock

_PARTS: tuple[tuple[str, Callable[[Footprint], int]], ...] = (
    ("weights", lambda memory: memory.weights),
    ("gradients", lambda memory: memory.gradients),
    ("optimiser state", lambda memory: memory.optimizer),
    ("reference", lambda memory: memory.reference),
    ("activations", lambda memory: memory.activations),
    ("log-prob head, its gradient", lambda memory: memory.head),
    ("buckets, gathered weights", lambda memory: memory.engine),
)
_CHOICE = {True: "with gradient checkpointing", False: "without gradient checkpointing"}


def render(plan: Plan, console: Console) -> None:
    """Print the plan: memory per GPU side by side, then time, then what it all rests on."""
    console.print(_table(plan))
    for line in (*_lines(plan), *_assumptions(plan)):
        console.print(Text(line))


def _table(plan: Plan) -> Table:
    hardware = plan.hardware
    title = f"{plan.model} on {hardware.num_gpus} x {hardware.gpu_memory:g} GiB: GiB per GPU"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for each in plan.modes:
        gpus = " (1 GPU)" if each.mode == "single" else ""
        table.add_column(f"{each.mode}{gpus}", justify="right", overflow="fold")
    for name, cells in rows(plan):
        table.add_row(name, *cells, end_section=name in ("reference", "optimiser's step"))
    return table


def rows(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """The lines of the table: a name and a cell per mode."""

    def row(name: str, cell: Callable[[ModePlan], str]) -> tuple[str, list[str]]:
        return name, [cell(each) for each in plan.modes]

    for name, part in _PARTS:
        yield name, [gib(part(each.memory)) for each in plan.modes]
    yield row("or, later, optimiser's step", lambda each: gib(each.memory.step))
    yield row("CUDA, NCCL, fragments *", lambda _: gib(RESERVE))
    yield row(f"total {_CHOICE[plan.is_recomputed]}", lambda each: gib(each.total))
    yield row("fits", lambda each: "yes" if each.fits else "no")
    yield row(f"total {_CHOICE[not plan.is_recomputed]}", lambda each: gib(each.total_otherwise))
    yield row("fits", lambda each: "yes" if each.fits_otherwise else "no")
    if any(each.memory.host for each in plan.modes):
        yield row("in the host's memory", lambda each: gib(each.memory.host))
    yield row("micro-batches in a step", lambda each: str(each.num_micro_batches))
    yield row("GiB sent in a step", lambda each: gib(each.bytes_sent))


def _lines(plan: Plan) -> Iterator[str]:
    counts, step, row = plan.counts, plan.step, plan.step.row
    yield (
        f"weights: {counts.trained:,} trained, {counts.frozen:,} frozen; "
        f"layout: {plan.layout}; reference: {plan.reference}"
    )
    yield (
        f"step: {plan.groups_per_step:,} groups, {step.tokens.unique:,.0f} tokens, "
        f"micro-batches of up to {row.num_tokens(is_padded=plan.layout == 'padded'):,}"
    )
    yield (
        f"step time *: {_seconds(plan.seconds_per_step)} for {plan.operations_per_step:.3g} "
        "floating-point operations, communication and the optimiser not counted"
    )
    if plan.seconds_of_cache is not None:
        records = "all" if plan.num_records else f"{RECORDS_IF_UNKNOWN:,}"
        number = f"{plan.num_records:,}" if plan.num_records else "an unknown number of"
        yield (
            f"reference cache *: {_seconds(plan.seconds_of_cache)} once, for {records} of "
            f"{number} records"
        )


def _assumptions(plan: Plan) -> Iterator[str]:
    hardware = plan.hardware
    yield (
        f"* assumed: {hardware.utilization:.0%} of {hardware.peak_tflops:g} TFLOP/s; "
        f"{gib(RESERVE)} GiB that no formula has. Formulas were checked on CPUs: docs/scaling.md"
    )
    yield from (f"! {note}" for note in plan.notes)


def gib(num_bytes: int) -> str:
    """A number of bytes in GiB, without its unit."""
    size = num_bytes / GIB
    return f"{size:.1f}" if size >= 0.05 or size == 0 else "<0.1"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else clock(seconds)
