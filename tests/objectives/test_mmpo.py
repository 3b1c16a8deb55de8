"""MMPO against its equation, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.pair_loops import (
    Response,
    assert_is_the_mean_over_pairs,
    mean_over_pairs,
    sigmoid,
)

CASES = [{"name": "mmpo"}, {"name": "mmpo", "beta": 0.3, "gamma": 0.5}]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """Both -log sigmoid(0) are log 2: so is their mixture, whatever the scores."""
    return mean_over_pairs(inputs, lambda w, r: math.log(2))


def test_a_pair_costs_what_the_formula_says():
    objective = build({"name": "mmpo", "beta": 0.5, "gamma": 0.25})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[7.0, 3.0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (2, -1), m = 0.5 * 3 = 1.5; p = sigmoid(0.25 * (7 - 3)) = sigmoid(1)
    p = sigmoid(1.0)
    expected = -p * math.log(sigmoid(1.5)) - (1 - p) * math.log(sigmoid(-1.5))
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    slope = 0.5 * (p - sigmoid(1.5))
    assert gradient.tolist()[0] == pytest.approx([-slope, slope], rel=1e-12)
    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_the_optimal_margin_is_gamma_times_the_gap_of_the_scores():
    objective = build({"name": "mmpo", "beta": 0.5, "gamma": 0.3})
    # gamma (9 - 4) = 1.5 = beta * 3
    inputs = inputs_of([[2.0, -1.0]], [[0.0, 0.0]], [[9.0, 4.0]])

    _, gradient = losses_and_gradient(objective, inputs)

    assert gradient.abs().max() < 1e-15


def test_only_differences_of_scores_matter():
    objective = build({"name": "mmpo", "gamma": 0.7})
    low = inputs_of([[2.0, -1.0]], [[0.0, 0.0]], [[1.0, 0.5]])
    high = inputs_of([[2.0, -1.0]], [[0.0, 0.0]], [[9.0, 8.5]])

    assert torch.equal(objective(low).losses, objective(high).losses)


def test_it_is_dpo_with_the_label_smoothing_that_the_scores_say():
    # p = sigmoid(2) = 1 - eps
    section = {"beta": 0.3, "label_smoothing": sigmoid(-2.0)}
    inputs = inputs_of([[2.0, -1.0]], [[0.0, 0.0]], [[4.0, 0.0]])

    mmpo = losses_and_gradient(build({"name": "mmpo", "beta": 0.3, "gamma": 0.5}), inputs)
    dpo = losses_and_gradient(build({"name": "dpo", **section}), inputs)

    torch.testing.assert_close(mmpo, dpo, rtol=1e-12, atol=1e-12)


def test_with_a_huge_gamma_it_is_dpo():
    # Scores of a draw differ by 0.25 or more: sigmoid(2500) = 1
    inputs = draw(build({"name": "dpo"})).inputs

    mmpo = losses_and_gradient(build({"name": "mmpo", "beta": 0.1, "gamma": 1e4}), inputs)
    dpo = losses_and_gradient(build({"name": "dpo", "beta": 0.1}), inputs)

    torch.testing.assert_close(mmpo, dpo, rtol=1e-12, atol=1e-12)


def test_responses_that_tie_and_a_response_alone_are_not_counted():
    inputs = inputs_of(
        [[2.0, -1.0], [3.0, 0.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[4.0, 4.0], [4.0, 0.0]],
        where=[[True, True], [True, False]],
    )

    output = build({"name": "mmpo"})(inputs)

    assert output.counted.tolist() == [False, False]
    assert output.losses.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    beta, gamma = 0.1, 1.5

    def label_and_margin(w: Response, r: Response) -> tuple[float, float]:
        return sigmoid(gamma * (w.score - r.score)), beta * (w.log_ratio - r.log_ratio)

    def cost(w: Response, r: Response) -> float:
        p, m = label_and_margin(w, r)
        return -p * math.log(sigmoid(m)) - (1 - p) * math.log(sigmoid(-m))

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        p, m = label_and_margin(w, r)
        return -beta * (p - sigmoid(m)), beta * (p - sigmoid(m))

    objective = build({"name": "mmpo", "beta": beta, "gamma": gamma})
    assert_is_the_mean_over_pairs(objective, num_slots, cost, slopes)


@pytest.mark.parametrize("absurd", [float("nan"), float("inf"), -float("inf")])
def test_scores_of_unused_slots_leave_no_trace(absurd: float):
    objective = build({"name": "mmpo"})
    policy, reference = [[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]
    where = [[True, True, False]]
    absurd_scores = inputs_of(policy, reference, [[0.9, 0.3, absurd]], where=where)
    inputs = inputs_of(policy, reference, [[0.9, 0.3, 0.0]], where=where)

    found, expected = (losses_and_gradient(objective, each) for each in (absurd_scores, inputs))

    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.isfinite(found[1]).all()


def test_margins_and_gaps_of_10000_stay_finite_with_the_right_sign():
    objective = build({"name": "mmpo", "beta": 0.1, "gamma": 2.0})
    policy, reference = [[-1e4, 0.0], [1e4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]
    scores = [[1e4, 0.0], [1e-30, 0.0]]
    inputs = inputs_of(policy, reference, scores, dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # p = 1, m = -1000: 1000, slope beta. p = 1/2, m = 1000: 500, slope -beta / 2
    assert losses.tolist() == pytest.approx([1000.0, 500.0], rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-0.1, 0.1], rel=1e-6)
    assert gradient.tolist()[1] == pytest.approx([0.05, -0.05], rel=1e-6)


def test_it_has_no_warning_for_any_scores():
    ones = torch.ones(1, 2, dtype=torch.bool)

    assert build({"name": "mmpo"}).warning(torch.tensor([[1.0, 0.0]]), ones) is None


@pytest.mark.parametrize("key", ["beta", "gamma"])
def test_0_is_refused(key: str):
    with pytest.raises(UserError, match=rf"^objective\.{key} should be greater than 0, got 0\.$"):
        build({"name": "mmpo", key: 0})
