"""A loss that leaps is one line; losses that merely vary, drift or die out are none."""

import math
import random

import pytest
import torch

from prefopt.objectives.nll import NLL
from prefopt.train.metrics import LogWindow
from prefopt.train.spikes import limit_of, watch_loss
from prefopt.train.step_record import StepRecord
from prefopt.types import ObjectiveInputs, ObjectiveOutput
from tests.support.runs import logged, run
from tests.support.tiny import save_tiny_model, write_jsonl


def spikes_in(losses):
    """The steps at which a line is said, and how many spikes are counted."""
    window, lines = LogWindow(), []
    for step, loss in enumerate(losses, start=1):
        watch_loss(loss, step, StepRecord(), window, lines.append)
        window.add({"loss:sum": loss})
    return [int(line.split()[1].rstrip(":")) for line in lines], window.num_spikes


def test_the_limit_is_ten_times_the_upper_spread_above_the_median():
    # Of 0.00, 0.01, ... 1.00 the median is 0.5 and the ninth decile 0.9.
    losses = [i / 100 for i in range(101)]

    assert limit_of(losses, typical=0.5) == pytest.approx(0.5 + 10 * 0.4)


def test_losses_that_hardly_vary_may_grow_by_a_quarter_of_their_size():
    assert limit_of([0.7] * 40, typical=0.6) == pytest.approx(0.7 + 0.25 * 0.7)
    # They were larger once, so a quarter of that is nothing to speak of.
    assert limit_of([1e-6] * 40, typical=0.2) == pytest.approx(1e-6 + 0.25 * 0.2)
    assert limit_of([-8.0] * 40, typical=7.0) == pytest.approx(-8.0 + 0.25 * 8.0)


def test_a_leap_is_said_at_once_and_counted():
    generator = random.Random(0)
    losses = [generator.gauss(0.5, 0.05) for _ in range(200)]
    losses[120] = 2.0

    assert spikes_in(losses) == ([121], 1)


def test_a_leap_that_lasts_is_said_once():
    losses = [0.5 + 0.01 * (i % 5) for i in range(100)]
    losses[60:65] = [3.0, 3.1, 3.2, 3.1, 3.0]

    assert spikes_in(losses) == ([61], 5)


def test_a_level_that_stays_becomes_the_usual_one():
    losses = [0.5] * 100 + [3.0] * 100

    said, counted = spikes_in(losses)
    assert said == [101]
    assert counted <= 10


def test_nothing_is_said_before_there_is_enough_to_compare_with():
    assert spikes_in([0.5] * 31 + [50.0]) == ([], 0)
    assert spikes_in([0.5] * 32 + [50.0]) == ([33], 1)


@pytest.mark.parametrize(
    "loss_at",
    [
        # ln 2 in a long warmup, then batches begin to differ.
        lambda i, noise: math.log(2) + noise * 0.05 * min(max(i - 100, 0) / 50, 1),
        lambda i, noise: math.exp(-i / 30) * (1 + 0.3 * noise),
        lambda i, noise: 0.7 - 0.001 * i + 0.1 * noise,
        lambda i, noise: 1.0 + 0.003 * i + 0.05 * noise,
        # A heavy tail, as of a sum with few groups.
        lambda i, noise: 0.1 * math.exp(0.5 * noise),
        lambda i, noise: -5 - 0.05 * i + noise,
    ],
    ids=["warmup", "dying", "falling", "rising", "heavy", "negative"],
)
def test_losses_that_vary_drift_or_die_out_say_nothing(loss_at):
    generator = random.Random(0)

    assert spikes_in([loss_at(i, generator.gauss(0, 1)) for i in range(500)]) == ([], 0)


class Loud(NLL):
    """A likelihood whose loss is a thousand times too large for groups with a huge score."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        output = super().__call__(inputs)
        factors = torch.where((inputs.scores == 9).any(dim=1), 1000.0, 1.0)
        return ObjectiveOutput(
            losses=output.losses * factors,
            counted=output.counted,
            rewards=output.rewards,
            metrics={},
        )


def test_a_run_names_the_records_with_the_largest_losses(tmp_path, capsys):
    save_tiny_model(tmp_path / "model")
    rows = [
        {"prompt": f"p{i}", "responses": ["ab", "c"], "scores": [9 if i == 71 else 1, 0]}
        for i in range(80)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)

    trainer = run(
        tmp_path,
        objective=Loud(of="all"),
        training={"groups_per_step": 2, "shuffle": False, "max_steps": 40, "learning_rate": 1e-6},
    )

    said = [line for line in capsys.readouterr().out.splitlines() if "far above" in line]
    assert len(said) == 1
    # Two groups a step: row 72 is in step 36.
    assert said[0].startswith("step 36: the loss is ")
    assert "those of the last 35 steps" in said[0]
    largest = said[0].split("Largest: ")[1]
    assert largest.startswith("pairs.jsonl:72 (")
    assert "pairs.jsonl:71 (" in largest
    assert logged(trainer, "loss_spikes") == [1.0] * 5
