"""Numbers of a step: TRL's names and definitions, on pairs and beyond."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from prefopt.train.metrics import LogWindow, StepSums, group_metrics, means_of
from prefopt.types import ObjectiveInputs, ObjectiveOutput


def metrics_of(
    rewards: list[list[float]],
    scores: list[list[float]],
    *,
    where: list[list[bool]] | None = None,
    logps: list[list[float]] | None = None,
    extra: dict[str, list[float]] | None = None,
    counted: list[bool] | None = None,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Metrics of groups with these rewards; every slot is used unless said otherwise."""
    reward = torch.tensor(rewards)
    mask = torch.ones_like(reward).bool() if where is None else torch.tensor(where)
    policy_logps = torch.tensor(logps or rewards, dtype=torch.float32)
    inputs = ObjectiveInputs(
        policy_logps=policy_logps.requires_grad_(),
        reference_logps=None,
        num_tokens=mask.long(),
        scores=torch.tensor(scores, dtype=torch.float64),
        where=mask,
    )
    output = ObjectiveOutput(
        losses=torch.zeros(len(rewards)),
        counted=torch.tensor(counted or [True] * len(rewards)),
        rewards=reward,
        metrics={name: torch.tensor(values) for name, values in (extra or {}).items()},
    )
    return group_metrics(inputs, output)


def logged(metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """What a log line would say."""
    sums = StepSums()
    sums.add_groups(metrics)
    return means_of(sums.read(sums.pack().tolist()))


def test_a_pair_is_logged_as_trl_logs_it():
    metrics = metrics_of([[0.5, -0.25], [1.0, 2.0]], [[1, 0], [1, 0]], logps=[[-9, -7], [-5, -6]])

    # Means over pairs: chosen (0.5 + 1) / 2, rejected (-0.25 + 2) / 2, margin (0.75 - 1) / 2
    assert logged(metrics) == {
        "rewards/chosen": 0.75,
        "rewards/rejected": 0.875,
        "rewards/margins": -0.125,
        "rewards/accuracies": 0.5,
        "logps/chosen": -7.0,
        "logps/rejected": -6.5,
    }


def test_equal_rewards_are_not_in_order():
    assert logged(metrics_of([[0.5, 0.5]], [[1, 0]]))["rewards/accuracies"] == 0.0


def test_chosen_and_rejected_are_the_best_and_the_worst_of_a_list():
    means = logged(metrics_of([[1.0, 2.0, 4.0, 8.0]], [[2, 3, 1, 0]]))

    assert means["rewards/chosen"] == 2.0
    assert means["rewards/rejected"] == 8.0
    assert means["rewards/margins"] == -6.0
    # Pairs in order: score 2 > 1, > 0; 3 > 2, 1, 0; 1 > 0. Rewards agree on 3 > 2 alone.
    assert means["rewards/accuracies"] == pytest.approx(1 / 6)


def test_responses_that_share_a_place_are_averaged():
    means = logged(metrics_of([[1.0, 3.0, 4.0, 8.0]], [[2, 2, 0, 0]]))

    # (1 + 3) / 2 and (4 + 8) / 2
    assert means["rewards/chosen"] == 2.0
    assert means["rewards/rejected"] == 6.0


def test_a_group_that_ties_has_no_chosen_response():
    means = logged(metrics_of([[1.0, 3.0], [5.0, 4.0]], [[1, 1], [1, 0]]))

    assert means["rewards/chosen"] == 5.0
    assert means["rewards/accuracies"] == 1.0


def test_a_response_alone_logs_its_own_reward_and_nothing_else():
    metrics = metrics_of(
        [[2.0, 0.0], [4.0, 0.0]],
        [[1, 0], [0, 0]],
        where=[[True, False], [True, False]],
        logps=[[-3.0, 99.0], [-5.0, 99.0]],
    )

    assert logged(metrics) == {"rewards/mean": 3.0, "logps/mean": -4.0}


def test_unused_slots_are_neither_chosen_nor_rejected():
    means = logged(
        metrics_of(
            [[1.0, 2.0, 0.0]],
            [[5, 4, -9]],
            where=[[True, True, False]],
            logps=[[-1.0, -2.0, float("nan")]],
        )
    )

    assert means["rewards/rejected"] == 2.0
    assert means["logps/rejected"] == -2.0


def test_an_objectives_own_metrics_are_averaged_over_the_groups_that_it_counts():
    metrics = metrics_of(
        [[1.0, 0.0], [1.0, 0.0]],
        [[1, 0], [1, 0]],
        extra={"own": [3.0, 99.0]},
        counted=[True, False],
    )

    assert logged(metrics)["own"] == 3.0


def test_a_metric_is_averaged_over_the_groups_that_define_it():
    metrics = metrics_of(
        [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
        [[1, 0], [1, 0], [1, 0]],
        extra={"own": [3.0, math.nan, 5.0], "never": [math.nan] * 3},
    )

    means = logged(metrics)

    assert means["own"] == 4.0
    assert "never" not in means


def test_metrics_carry_no_gradient():
    metrics = metrics_of([[0.5, -0.25]], [[1, 0]])

    assert not any(values.requires_grad for values, _ in metrics.values())


def test_a_filler_adds_its_names_and_no_number():
    metrics = metrics_of([[0.5, -0.25]], [[1, 0]])
    real, with_filler = StepSums(), StepSums()
    real.add_groups(metrics)

    with_filler.add_groups(metrics_of([[math.nan, 7.0]], [[1, 0]]), is_filler=True)
    with_filler.add_groups(metrics)

    assert with_filler.read(with_filler.pack().tolist()) == real.read(real.pack().tolist())


def test_ranks_with_a_filler_alone_send_sums_of_the_same_names():
    real, filler = StepSums(), StepSums()
    real.add_groups(metrics_of([[0.5, -0.25]], [[1, 0]]))
    filler.add_groups(metrics_of([[2.0]], [[1]]), is_filler=True)

    assert sorted(filler.values) == sorted(real.values)
    assert filler.pack().tolist() == [0.0] * len(filler.values)


def test_sums_do_not_depend_on_the_split():
    rewards, scores = [[0.1, 0.7], [0.3, 0.2], [0.5, 0.4]], [[1, 0], [1, 0], [0, 1]]
    whole, split = StepSums(), StepSums()
    whole.add_groups(metrics_of(rewards, scores))

    for reward, score in zip(rewards, scores, strict=True):
        split.add_groups(metrics_of([reward], [score]))

    torch.testing.assert_close(split.pack(), whole.pack(), rtol=1e-6, atol=1e-7)
    assert whole.pack().dtype == torch.float64


def test_a_window_weighs_groups_and_not_steps():
    window = LogWindow()

    window.add({"a:sum": 6.0, "a:count": 3.0, "loss:sum": 0.5, "loss:count": 1.0})
    window.add({"a:sum": 2.0, "a:count": 1.0, "b:sum": 0.0, "b:count": 0.0, "loss:sum": 0.5})

    # (6 + 2) / (3 + 1); nothing defined b
    assert window.drain() == {"a": 2.0, "loss": 1.0}
    assert window.drain() == {}


def test_a_window_goes_on_from_what_a_checkpoint_holds():
    window = LogWindow()
    window.add({"a:sum": 6.0, "a:count": 3.0, "loss:sum": 0.5, "loss:count": 1.0})

    restored = LogWindow(**json.loads(json.dumps(asdict(window))))
    for each in (window, restored):
        each.add({"a:sum": 1.0, "a:count": 4.0, "loss:sum": 1.5, "loss:count": 1.0})

    # (6 + 1) / (3 + 4)
    assert restored == window
    assert restored.drain() == window.drain() == {"a": 1.0, "loss": 1.0}
