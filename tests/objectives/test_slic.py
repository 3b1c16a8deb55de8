"""SLiC-HF: a hinge with NLL, on both sides of its kink."""

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.singly import gradient_over_pairs, logp, mean_over_pairs

CASES = [
    {"name": "slic"},
    {"name": "slic", "margin": 20.0, "nll_weight": None},
    {"name": "slic", "margin": 5.0, "nll_weight": 0.5},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The loss itself: the reference says nothing here."""

    def cost(g: int, w: int, l_: int) -> float:
        hinge = max(0.0, objective.margin - logp(inputs, g, w) + logp(inputs, g, l_))
        return hinge - (objective.nll_weight or 0.0) * logp(inputs, g, w)

    return mean_over_pairs(inputs, cost)


def test_a_pair_short_of_the_margin_costs_what_is_missing_and_the_nll():
    objective = build({"name": "slic", "margin": 3.0, "nll_weight": 0.1})
    inputs = inputs_of([[-10.0, -12.0]], None, [[1, 0]], num_tokens=[[5, 12]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # 3 - 2 + 0.1 * 10, summed over tokens: lengths say nothing
    assert losses.item() == pytest.approx(2.0, rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([-1.1, 1.0], rel=1e-12)


def test_a_pair_beyond_the_margin_costs_the_nll_alone():
    objective = build({"name": "slic", "margin": 3.0, "nll_weight": 0.1})
    inputs = inputs_of([[-10.0, -14.0]], None, [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.item() == pytest.approx(1.0, rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([-0.1, 0.0], rel=1e-12)


def test_null_leaves_out_the_nll():
    objective = build({"name": "slic", "margin": 3.0, "nll_weight": None})
    inputs = inputs_of([[-10.0, -14.0], [-10.0, -12.0]], None, [[1, 0], [1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [0.0, 1.0]
    assert gradient.tolist() == [[0.0, 0.0], [-1.0, 1.0]]


def test_rewards_are_log_probs():
    output = build({"name": "slic"})(inputs_of([[-10.0, -14.0]], None, [[1, 0]]))

    assert output.rewards.tolist() == [[-10.0, -14.0]]


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_a_list_is_the_mean_over_its_preferred_pairs(num_slots: int):
    objective = build({"name": "slic", "margin": 10.0, "nll_weight": 0.3})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    def slopes(g: int, w: int, l_: int) -> tuple[float, float]:
        active = 1.0 if logp(inputs, g, w) - logp(inputs, g, l_) < 10.0 else 0.0
        return -active - 0.3, active

    expected = value_at_reference(objective, inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        gradient, gradient_over_pairs(inputs, slopes), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    ("logps", "loss", "slope"), [([-1e4, 0.0], 10001.0, 1.0), ([0.0, -1e4], 0.0, 0.0)]
)
def test_margins_of_10000_nats_stay_finite(logps: list[float], loss: float, slope: float):
    objective = build({"name": "slic", "nll_weight": None})
    inputs = inputs_of([logps], None, [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [loss]
    assert gradient.tolist() == [[-slope, slope]]


@pytest.mark.parametrize("key", ["margin", "nll_weight"])
def test_a_weight_of_0_is_refused(key: str):
    with pytest.raises(UserError, match=rf"^objective\.{key} should be greater than 0, got 0\.$"):
        build({"name": "slic", key: 0})
