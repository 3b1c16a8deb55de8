"""NCA against its formula, worked out by hand and in loops."""

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
    {"name": "nca"},
    {"name": "nca", "beta": 0.3},
    {"name": "nca", "beta": 0.1, "alpha": 0.4},
    {"name": "nca", "alpha": 0.001},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All rewards are 0: both parts are log 2, for the labels and the weights 1/K each sum to 1."""
    values = [2 * math.log(2) if any(used) else 0.0 for used in inputs.where.tolist()]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def labels(group: Group, alpha: float | None) -> list[float]:
    top = max(group.scores)
    if alpha is None:
        return [(s == top) / group.scores.count(top) for s in group.scores]
    powers = [math.exp((s - top) / alpha) for s in group.scores]
    return [power / sum(powers) for power in powers]


def test_a_pair_costs_what_the_pair_form_says():
    objective = build({"name": "nca", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # r = 0.5 * (2, -1) = (1, -0.5)
    expected = -math.log(sigmoid(1)) - 0.5 * math.log(sigmoid(-1)) - 0.5 * math.log(sigmoid(0.5))
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    # c_w = beta (1.5 sigmoid(r_w) - 1), c_l = beta sigmoid(r_l) / 2
    slopes = [0.5 * (1.5 * sigmoid(1) - 1), 0.5 * sigmoid(-0.5) / 2]
    assert gradient.tolist()[0] == pytest.approx(slopes, rel=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("num_slots", range(1, 17))
def test_ragged_lists_with_ties_cost_what_loops_say(num_slots: int, alpha: float | None):
    objective = build({"name": "nca", "beta": 0.1, "alpha": alpha})

    def cost(group: Group) -> float:
        rewards, q = group.rewards(0.1), labels(group, alpha)
        raised = -sum(b * math.log(sigmoid(r)) for r, b in zip(rewards, q, strict=True))
        return raised - sum(math.log(sigmoid(-r)) for r in rewards) / len(rewards)

    def slopes(group: Group) -> list[float]:
        rewards, q = group.rewards(0.1), labels(group, alpha)
        # c_i = beta ((q_i + 1/K) sigmoid(r_i) - q_i)
        return [
            0.1 * ((b + 1 / len(rewards)) * sigmoid(r) - b) for r, b in zip(rewards, q, strict=True)
        ]

    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs
    assert_costs(objective, inputs, cost, slopes)


def test_on_a_pair_a_small_alpha_is_the_pair_form():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    soft = losses_and_gradient(build({"name": "nca", "beta": 0.5, "alpha": 1e-3}), inputs)
    pair = losses_and_gradient(build({"name": "nca", "beta": 0.5}), inputs)

    torch.testing.assert_close(soft, pair, rtol=1e-12, atol=1e-12)


def test_the_chosen_response_stops_rising_at_log_2():
    objective = build({"name": "nca", "beta": 0.01})
    # 69 nats at beta 0.01
    inputs = inputs_of([[100 * math.log(2), -5.0]], [[0.0, 0.0]], [[1, 0]])

    _, gradient = losses_and_gradient(objective, inputs)

    assert abs(gradient[0, 0].item()) < 1e-15
    assert gradient[0, 1] > 0


def test_the_gradient_vanishes_where_each_reward_is_the_log_of_k_times_its_label():
    objective = build({"name": "nca", "beta": 0.5, "alpha": 2.0})
    powers = [math.exp(s / 2) for s in (6, 4, 8)]
    inputs = inputs_of(
        [[math.log(3 * power / sum(powers)) / 0.5 for power in powers]], [[0.0] * 3], [[6, 4, 8]]
    )

    _, gradient = losses_and_gradient(objective, inputs)

    assert gradient.abs().max() < 1e-15


def test_a_response_alone_is_held_at_the_reference():
    objective = build({"name": "nca", "beta": 1.0})
    inputs = inputs_of([[0.5], [0.0]], [[0.0], [0.0]], [[0], [1]])

    output = objective(inputs)
    _, gradient = losses_and_gradient(objective, inputs)

    assert output.counted.tolist() == [True, True]
    # q = 1 and K = 1: c = 2 sigmoid(r) - 1
    assert gradient.flatten().tolist() == pytest.approx([2 * sigmoid(0.5) - 1, 0.0], rel=1e-12)


def test_rewards_are_beta_times_log_ratios():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    assert build({"name": "nca", "beta": 0.5})(inputs).rewards.tolist() == [[1.0, -0.5]]


@pytest.mark.parametrize("reward", [1e4, -1e4])
def test_rewards_of_10000_are_finite(reward: float):
    objective = build({"name": "nca", "beta": 1.0})
    inputs = inputs_of([[reward, reward]], [[0.0, 0.0]], [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # Far up the two halves cost r / 2 each, far down the chosen one costs -r.
    assert losses.item() == pytest.approx(1e4, rel=1e-6)
    expected = [0.5, 0.5] if reward > 0 else [-1.0, 0.0]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-6)


def test_only_a_given_alpha_is_warned_of():
    scores, where = torch.tensor([[8.5, 8.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool)

    said = build({"name": "nca", "alpha": 1e-4}).warning(scores, where)

    assert said is not None
    assert "alpha = 0.0001" in said
    assert build({"name": "nca"}).warning(scores, where) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"alpha": 0}, r"^objective\.alpha should be greater than 0, got 0\.$"),
        ({"alpha": True}, r"^objective\.alpha should not be true or false, got True\.$"),
        ({"beta": -0.1}, r"^objective\.beta should be greater than 0, got -0\.1\.$"),
    ],
)
def test_a_wrong_parameter_says_which_and_why(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "nca", **section})
