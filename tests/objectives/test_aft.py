"""AFT's boundary form against its formula, worked out by hand and in loops."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.plain import Group, assert_costs, groups_of

CASES = [{"name": "aft", "beta": 0.5}, {"name": "aft", "beta": 2.0}]


def stops_gradient(objective: Objective) -> bool:
    """T is a constant."""
    return True


def terms(group: Group, beta: float) -> dict[tuple[int, int], tuple[float, float]]:
    """exp(l_j - l_i) and exp(T_ij - l_j) of every pair."""
    means, found = group.means(), {}
    for i, j in group.pairs():
        lowest = min(means[p] for p, loser in group.pairs() if loser == j)
        boundary = 2 * lowest - 2 * beta - means[i]
        found[i, j] = (math.exp(means[j] - means[i]), math.exp(boundary - means[j]))
    return found


def cost(group: Group, beta: float) -> float:
    return math.log(1 + sum(a + b for a, b in terms(group, beta).values()))


def slopes(group: Group, beta: float) -> list[float]:
    found = terms(group, beta)
    divisor = 1 + sum(a + b for a, b in found.values())
    result = [0.0] * len(group.scores)
    for (i, j), (ranking, boundary) in found.items():
        result[i] -= ranking / group.num_tokens[i] / divisor
        result[j] += (ranking - boundary) / group.num_tokens[j] / divisor
    return result


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The reference says nothing here: the formula as it stands, in loops."""
    beta = objective.model_dump()["beta"]
    values = [cost(group, beta) for group in groups_of(inputs)]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "aft", "beta": 0.25})
    inputs = inputs_of([[-10.0, -12.0]], None, [[1, 0]], num_tokens=[[10, 8]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # l = (-1, -1.5), T = -2 - 0.5 + 1 = -1.5: exp(-0.5) and exp(0)
    total = 1 + math.exp(-0.5) + 1
    assert losses.item() == pytest.approx(math.log(total), rel=1e-12)
    expected = [-math.exp(-0.5) / 10 / total, (math.exp(-0.5) - 1) / 8 / total]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_ragged_lists_with_ties_cost_what_loops_say(num_slots: int):
    objective = build({"name": "aft", "beta": 0.5})
    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs

    assert_costs(
        objective, inputs, lambda group: cost(group, 0.5), lambda group: slopes(group, 0.5)
    )


def test_a_rejected_response_settles_beta_below_the_least_likely_better_one():
    objective = build({"name": "aft", "beta": 0.25})

    def slope(mean: float) -> float:
        inputs = inputs_of([[-1.0, -2.0, mean]], None, [[1, 1, 0]])
        return losses_and_gradient(objective, inputs)[1][0, 2].item()

    # The least likely of the two better ones has l = -2.
    assert slope(-2.25) == pytest.approx(0, abs=1e-15)
    assert slope(-2.2) > 0
    assert slope(-2.3) < 0


def test_better_responses_are_only_ever_raised():
    objective = build({"name": "aft", "beta": 0.25})
    inputs = inputs_of([[-1.0, -2.0, -9.0]], None, [[1, 1, 0]])

    _, gradient = losses_and_gradient(objective, inputs)

    assert (gradient[0, :2] < 0).all()


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_gaps_of_10000_nats_are_finite(gap: float):
    objective = build({"name": "aft", "beta": 1.0})
    inputs = inputs_of([[0.0, gap]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # Far above exp(gap) is all there is; far below exp(T - l_j) with T = -2.
    assert losses.item() == pytest.approx(1e4 if gap > 0 else 1e4 - 2, rel=1e-6)
    assert gradient.tolist()[0] == ([-1.0, 1.0] if gap > 0 else [0.0, -1.0])


def test_rewards_are_mean_log_probs():
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[4, 10]])

    assert build({"name": "aft", "beta": 1.0})(inputs).rewards.tolist() == [[-2.5, -3.0]]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, r"^objective\.beta is missing: the recipe must say it\. It is: .+\.$"),
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
    ],
)
def test_a_wrong_parameter_says_which_and_why(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "aft", **section})
