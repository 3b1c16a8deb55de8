"""Steps whose loss is finite and yet far above those before it."""

from collections.abc import Callable, Sequence

import numpy as np

from prefopt.train.metrics import LogWindow
from prefopt.train.step_record import StepRecord

_WINDOW = 64
# Fewer losses say too little of how far they spread.
_ENOUGH = 32
_TIMES = 10.0
# Losses that hardly vary, such as ln 2 in a long warmup, may begin to.
_LEAST_SHARE = 0.25
_NUM_NAMED = 8


def limit_of(losses: Sequence[float], *, typical: float) -> float:
    """From where on a loss is a spike.

    The upper half of the losses says how far they spread by chance: the ninth decile lies so far
    above the median. A spike lies ten times as far, which a loss that drifts, falls or has a
    heavy tail does not reach, and no nearer than a quarter of the size of losses.

    Args:
        losses: of the steps before.
        typical: the mean size of losses since the run began: a loss that has come down to nothing
            is no spike at ten times nothing.
    """
    median, ninth_decile = np.quantile(losses, [0.5, 0.9])
    least = _LEAST_SHARE * max(abs(median), typical)
    return float(median + max(_TIMES * (ninth_decile - median), least))


def watch_loss(
    loss: float, step: int, record: StepRecord, window: LogWindow, say: Callable[[str], None]
) -> None:
    """Count a spike and say so, once until losses are back; every rank must call this.

    Args:
        loss: of the step, over all ranks; not yet added to the window.
        step: its number, from 1.
        record: what this rank computed of it.
        window: the losses before.
        say: prints a line on the first process.
    """
    recent = window.recent_losses
    window.recent_losses = [*recent, loss][-_WINDOW:]
    if len(recent) < _ENOUGH:
        return
    num_learned = step - 1 - window.num_skipped
    limit = limit_of(recent, typical=window.total_size / num_learned)
    if loss <= limit:
        return
    window.num_spikes += 1
    if recent[-1] > limit:
        return
    groups = sorted(record.gathered(), key=lambda group: group["loss"], reverse=True)
    largest = ", ".join(f"{each['record']} ({each['loss']:.4g})" for each in groups[:_NUM_NAMED])
    low, median, high = np.quantile(recent, [0.1, 0.5, 0.9])
    say(
        f"step {step}: the loss is {loss:.4g}, far above those of the last {len(recent)} steps "
        f"(median {median:.4g}, most between {low:.4g} and {high:.4g}). Largest: {largest}"
    )
