"""CPO: the preference term by hand, and the NLL with its own denominator."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import (
    draw,
    inputs_of,
    loss_gradient,
    losses_and_gradient,
    one_by_one,
    step_loss,
)
from tests.objectives.singly import (
    gradient_over_pairs,
    length,
    logp,
    mean_over_pairs,
    per_group,
    preferred_pairs,
    sigmoid,
    softplus,
)

CASES = [
    {"name": "cpo"},
    {"name": "cpo", "beta": 0.5, "nll_weight": None},
    {"name": "cpo", "beta": 0.02, "nll_weight": 0.3},
]


def winners(inputs: ObjectiveInputs, g: int) -> set[int]:
    return {w for w, _ in preferred_pairs(inputs, g)}


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The sum of both terms before their denominators: the reference says nothing here."""

    def preference(g: int, w: int, l_: int) -> float:
        return softplus(-objective.beta * (logp(inputs, g, w) - logp(inputs, g, l_)))

    def nll(g: int) -> float:
        return (objective.nll_weight or 0.0) * -sum(logp(inputs, g, w) for w in winners(inputs, g))

    return mean_over_pairs(inputs, preference) + per_group(inputs, nll)


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "cpo", "beta": 0.1, "nll_weight": None})
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[5, 12]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # m = 0.1 * (-10 + 30) = 2, whatever the lengths
    assert losses.item() == pytest.approx(-math.log(sigmoid(2.0)), rel=1e-12)
    slope = 0.1 * sigmoid(-2.0)
    assert gradient.tolist()[0] == pytest.approx([-slope, slope], rel=1e-12)


def test_rewards_are_beta_times_log_probs():
    objective = build({"name": "cpo", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[5, 12]])

    assert objective(inputs).rewards.tolist() == [[-5.0, -15.0]]


def test_the_nll_is_the_mean_over_all_preferred_tokens_of_the_step():
    objective = build({"name": "cpo", "beta": 0.1, "nll_weight": 0.5})
    inputs = inputs_of(
        [[-10.0, -30.0], [-8.0, -1.0], [-5.0, -5.0]],
        None,
        [[1, 0], [0, 1], [1, 1]],
        num_tokens=[[4, 10], [7, 2], [100, 100]],
    )

    whole = step_loss(objective, [inputs])
    split = step_loss(objective, one_by_one(inputs))

    # m = 2 and 0.7, over 2 groups; preferred are 10 nats over 4 tokens and 1 nat over 2
    preference = -(math.log(sigmoid(2.0)) + math.log(sigmoid(0.7))) / 2
    assert whole.item() == pytest.approx(preference + 0.5 * 11 / 6, rel=1e-12)
    assert split.item() == pytest.approx(whole.item(), rel=1e-12)
    # c_w = -(beta sigmoid(-m) / 2 + 0.5 / 6)
    gradient = loss_gradient(whole, inputs.policy_logps)
    assert gradient[0, 0].item() == pytest.approx(-(0.1 * sigmoid(-2.0) / 2 + 0.5 / 6), rel=1e-12)
    assert gradient[2].tolist() == [0.0, 0.0]


def test_with_equal_log_probs_of_the_reference_it_is_dpo_without_its_nll():
    cpo = build({"name": "cpo", "beta": 0.3, "nll_weight": None})
    dpo = build({"name": "dpo", "beta": 0.3})
    policy, scores = [[-3.0, -9.0, -5.0]], [[2, 0, 1]]

    expected = dpo(inputs_of(policy, [[-7.0] * 3], scores)).losses

    torch.testing.assert_close(cpo(inputs_of(policy, None, scores)).losses, expected)


def test_a_response_alone_is_preferred_to_nothing():
    output = build({"name": "cpo"})(inputs_of([[-6.0]], None, [[1]], num_tokens=[[3]]))

    assert output.counted.tolist() == [False]
    assert output.all_terms()["nll"].weight.tolist() == [0.0]


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_a_list_is_the_mean_over_its_pairs_and_the_nll_of_all_that_win(num_slots: int):
    objective = build({"name": "cpo", "beta": 0.05, "nll_weight": 0.3})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)
    weight = objective(inputs).all_terms()["nll"].weight

    def slopes(g: int, w: int, l_: int) -> tuple[float, float]:
        slope = 0.05 * sigmoid(-0.05 * (logp(inputs, g, w) - logp(inputs, g, l_)))
        return -slope, slope

    expected = gradient_over_pairs(inputs, slopes)
    for g in range(num_slots + 2):
        for w in winners(inputs, g):
            expected[g, w] -= 0.3
        assert weight[g].item() == sum(length(inputs, g, w) for w in winners(inputs, g))
    torch.testing.assert_close(
        losses, value_at_reference(objective, inputs), rtol=1e-12, atol=1e-13
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("ahead", "loss", "slope"), [(-1e4, 1000.0, 0.1), (1e4, 0.0, 0.0)])
def test_margins_of_10000_nats_stay_finite(ahead: float, loss: float, slope: float):
    objective = build({"name": "cpo", "beta": 0.1, "nll_weight": None})
    inputs = inputs_of([[min(ahead, 0), min(-ahead, 0)]], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.item() == pytest.approx(loss, rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-slope, slope], rel=1e-6)


@pytest.mark.parametrize("key", ["beta", "nll_weight"])
def test_a_weight_of_0_is_refused(key: str):
    with pytest.raises(UserError, match=rf"^objective\.{key} should be greater than 0, got 0\.$"):
        build({"name": "cpo", key: 0})
