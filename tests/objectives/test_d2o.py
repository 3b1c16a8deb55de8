"""D2O against its formula, worked out by hand and in loops."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.plain import Group, assert_costs

CASES = [
    {"name": "d2o"},
    {"name": "d2o", "beta": 0.4, "alpha": 0.1},
    {"name": "d2o", "beta": 0.1, "alpha": 0.3},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All log-ratios are 0: the loss is -log sigmoid(0) = log 2 whatever beta and alpha are."""
    values = [
        math.log(2) if len(set(scores[where].tolist())) > 1 else 0.0
        for scores, where in zip(inputs.scores, inputs.where, strict=True)
    ]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_worst_response_stands_against_the_mean_of_the_others():
    objective = build({"name": "d2o", "beta": 0.5, "alpha": 0.2})
    inputs = inputs_of([[-10.0, -30.0, -7.0]], [[-12.0, -29.0, -3.0]], [[2, 1, 5]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (2, -1, -4), the others' mean is -1: m = 0.5 * -1 - 0.2 * -1 = -0.3
    assert losses.item() == pytest.approx(-math.log(sigmoid(-0.3)), rel=1e-12)
    # -beta / 2 * sigmoid(-m) for each of the two others, alpha * sigmoid(-m) for the worst
    kappa = sigmoid(0.3)
    expected = [-0.25 * kappa, 0.2 * kappa, -0.25 * kappa]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_ragged_lists_with_ties_cost_what_loops_say(num_slots: int):
    objective = build({"name": "d2o", "beta": 0.1, "alpha": 0.05})

    def margins(group: Group) -> dict[int, float]:
        h, low = group.rewards(1.0), min(group.scores)
        others = [x for x, s in zip(h, group.scores, strict=True) if s > low]
        return {
            k: 0.1 * sum(others) / len(others) - 0.05 * h[k]
            for k, s in enumerate(group.scores)
            if s == low and others
        }

    def cost(group: Group) -> float:
        found = margins(group).values()
        return sum(-math.log(sigmoid(m)) for m in found) / max(1, len(found))

    def slopes(group: Group) -> list[float]:
        found = margins(group)
        kappa = {k: sigmoid(-m) / len(found) for k, m in found.items()}
        up = -0.1 * sum(kappa.values()) / max(1, len(group.scores) - len(found))
        return [0.05 * kappa[k] if k in kappa else up for k in range(len(group.scores))]

    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs
    assert_costs(objective, inputs, cost, slopes)


def test_several_worst_responses_each_stand_against_the_same_others():
    objective = build({"name": "d2o", "beta": 0.5, "alpha": 0.2})
    inputs = inputs_of([[1.0, 2.0, -3.0]], [[0.0, 0.0, 0.0]], [[1, 0, 0]])

    # m = 0.5 * 1 - 0.2 * 2 = 0.1 and 0.5 * 1 + 0.2 * 3 = 1.1
    expected = -(math.log(sigmoid(0.1)) + math.log(sigmoid(1.1))) / 2
    assert objective(inputs).losses.item() == pytest.approx(expected, rel=1e-12)


def test_on_a_pair_with_alpha_equal_to_beta_it_is_dpo():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    ours = losses_and_gradient(build({"name": "d2o", "beta": 0.3, "alpha": 0.3}), inputs)
    dpo = losses_and_gradient(build({"name": "dpo", "beta": 0.3}), inputs)

    torch.testing.assert_close(ours, dpo, rtol=1e-12, atol=0)


@pytest.mark.parametrize("worst", [1e4, -1e4])
def test_a_worst_response_10000_nats_off_costs_a_finite_number(worst: float):
    objective = build({"name": "d2o", "beta": 0.1, "alpha": 0.2})
    inputs = inputs_of([[0.0, worst]], [[0.0, 0.0]], [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # m = -+2000
    assert losses.item() == pytest.approx(2000.0 if worst > 0 else 0.0, rel=1e-6)
    expected = [-0.1, 0.2] if worst > 0 else [0.0, 0.0]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-6)


def test_rewards_are_beta_times_log_ratios():
    objective = build({"name": "d2o", "beta": 0.5, "alpha": 0.2})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


@pytest.mark.parametrize("key", ["beta", "alpha"])
def test_a_weight_of_0_is_refused(key: str):
    with pytest.raises(UserError, match=rf"^objective\.{key} should be greater than 0, got 0\.$"):
        build({"name": "d2o", key: 0})
