"""InfoNCA against its formula, worked out by hand and in loops."""

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
    {"name": "infonca", "beta": 0.3, "alpha": 0.4},
    {"name": "infonca", "alpha": 1.0},
    {"name": "infonca", "beta": 0.05, "alpha": 0.001},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All rewards are 0, so softmax(r) = 1/K and the loss is log K whatever the labels are."""
    values = [math.log(max(1, k)) for k in inputs.where.sum(dim=1).tolist()]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def test_a_list_costs_the_cross_entropy_of_scores_and_rewards():
    objective = build({"name": "infonca", "beta": 0.5, "alpha": 2.0})
    inputs = inputs_of([[-10.0, -30.0, -5.0]], [[-12.0, -29.0, -5.0]], [[6, 4, 8]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # r = 0.5 * (2, -1, 0) = (1, -0.5, 0); q = softmax(3, 2, 4) = (e, 1, e^2) / (1 + e + e^2)
    total = math.exp(1) + math.exp(-0.5) + 1
    p = [math.exp(1) / total, math.exp(-0.5) / total, 1 / total]
    z = 1 + math.e + math.e**2
    q = [math.e / z, 1 / z, math.e**2 / z]
    expected = -sum(b * math.log(a) for a, b in zip(p, q, strict=True))
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    # c_i = beta (p_i - q_i)
    assert gradient.tolist()[0] == pytest.approx(
        [0.5 * (a - b) for a, b in zip(p, q, strict=True)], rel=1e-12
    )


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_ragged_lists_with_ties_cost_what_loops_say(num_slots: int):
    objective = build({"name": "infonca", "beta": 0.1, "alpha": 0.3})

    def cost(group: Group) -> float:
        p, q = softmax(group.rewards(0.1)), softmax([s / 0.3 for s in group.scores])
        return -sum(b * math.log(a) for a, b in zip(p, q, strict=True))

    def slopes(group: Group) -> list[float]:
        p, q = softmax(group.rewards(0.1)), softmax([s / 0.3 for s in group.scores])
        return [0.1 * (a - b) for a, b in zip(p, q, strict=True)]

    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs
    assert_costs(objective, inputs, cost, slopes)


def test_on_a_pair_a_small_alpha_makes_it_dpo():
    inputs = inputs_of([[-10.0, -30.0], [-3.0, -1.0]], [[-12.0, -29.0], [-1.0, -1.0]], [[1, 0]] * 2)

    ours = losses_and_gradient(build({"name": "infonca", "beta": 0.5, "alpha": 1e-3}), inputs)
    dpo = losses_and_gradient(build({"name": "dpo", "beta": 0.5}), inputs)

    torch.testing.assert_close(ours, dpo, rtol=1e-12, atol=1e-12)


def test_the_gradient_vanishes_where_rewards_are_scores_over_alpha_up_to_a_constant():
    objective = build({"name": "infonca", "beta": 0.5, "alpha": 2.0})
    # r = s / 2 + 7
    inputs = inputs_of([[2 * (s / 2 + 7) for s in (6, 4, 8)]], [[0.0] * 3], [[6, 4, 8]])

    _, gradient = losses_and_gradient(objective, inputs)

    assert gradient.abs().max() < 1e-15


def test_rewards_are_beta_times_log_ratios():
    objective = build({"name": "infonca", "beta": 0.5, "alpha": 1.0})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_a_response_alone_does_not_count_and_a_tied_list_does():
    objective = build({"name": "infonca", "alpha": 1.0})
    inputs = inputs_of(
        [[1.0, 0.0], [1.0, 3.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[5, 0], [5, 5]],
        where=[[True, False], [True, True]],
    )

    output = objective(inputs)

    assert output.counted.tolist() == [False, True]
    assert output.losses[0] == 0


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_differences_of_10000_nats_are_finite(margin: float):
    objective = build({"name": "infonca", "beta": 1.0, "alpha": 0.001})
    inputs = inputs_of([[margin, 0.0]], [[0.0, 0.0]], [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # q = (1, 0): the loss is log(1 + exp(-margin)), its slope -sigmoid(-margin)
    assert losses.item() == (0.0 if margin > 0 else 1e4)
    assert gradient.tolist() == [[0.0, 0.0] if margin > 0 else [-1.0, 1.0]]


def test_scores_that_make_labels_one_hot_are_warned_of():
    scores, where = torch.tensor([[8.5, 8.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool)

    said = build({"name": "infonca", "alpha": 1e-4}).warning(scores, where)

    assert said is not None
    assert "alpha = 0.0001" in said
    assert build({"name": "infonca", "alpha": 1.0}).warning(scores, where) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {},
            r"^objective\.alpha is missing: the recipe must say it\. "
            r"It is: Temperature of the soft labels, in the unit of the scores, .*\.$",
        ),
        ({"alpha": 0}, r"^objective\.alpha should be greater than 0, got 0\.$"),
        ({"alpha": None}, r"^objective\.alpha should be a valid number, got None\.$"),
        ({"alpha": 1, "beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
    ],
)
def test_a_wrong_parameter_says_which_and_why(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "infonca", **section})
