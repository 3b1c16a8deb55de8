"""Dr. DPO against the paper's equations 12 and 13, worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient, one_by_one, step_loss

CASES = [
    {"name": "dr_dpo"},
    {"name": "dr_dpo", "beta": 0.5, "beta_prime": 0.5},
    {"name": "dr_dpo", "beta": 0.2, "beta_prime": 3.0},
]
# h = 2 + 1 = 3 and -1 - 1 = -2; a third group says nothing.
POLICY = [[-10.0, -30.0], [-5.0, -6.0], [-1.0, -2.0]]
REFERENCE = [[-12.0, -29.0], [-4.0, -7.0], [-2.0, -1.0]]
SCORES = [[1, 0], [1, 0], [1, 1]]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """Every pair costs log 2, and a soft minimum of equal numbers is that number."""
    values = [
        math.log(2) if len(set(scores[where].tolist())) > 1 else 0.0
        for scores, where in zip(inputs.scores, inputs.where, strict=True)
    ]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pair_loss(margin: float) -> float:
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def test_a_step_costs_what_equation_12_says():
    objective = build({"name": "dr_dpo", "beta": 0.5})
    inputs = inputs_of(POLICY, REFERENCE, SCORES)

    losses, gradient = losses_and_gradient(objective, inputs)

    # beta' = 1: exp(-l) = sigmoid(m), m = 1.5 and -1; the tied group is not in the mean
    likely = [sigmoid(1.5), sigmoid(-1.0)]
    expected = -math.log(sum(likely) / 2)
    assert losses.tolist() == pytest.approx([expected, expected, 0.0], rel=1e-12)
    # The step's loss is the mean of the counted losses; its slope is -w beta sigmoid(-m)
    slopes = [
        likely[0] / sum(likely) * 0.5 * sigmoid(-1.5),
        likely[1] / sum(likely) * 0.5 * sigmoid(1.0),
    ]
    flat = [-slopes[0], slopes[0], -slopes[1], slopes[1], 0, 0]
    assert (gradient / 2).flatten().tolist() == pytest.approx(flat, rel=1e-12)


def test_beta_prime_is_the_temperature_of_the_weights():
    objective = build({"name": "dr_dpo", "beta": 0.5, "beta_prime": 2.0})

    losses = objective(inputs_of(POLICY, REFERENCE, SCORES)).losses

    # exp(-l / 2) = sqrt(sigmoid(m))
    mean = (math.sqrt(sigmoid(1.5)) + math.sqrt(sigmoid(-1.0))) / 2
    assert losses[0].item() == pytest.approx(-2 * math.log(mean), rel=1e-12)


@pytest.mark.parametrize(
    ("beta_prime", "expected"),
    [
        (1e6, (pair_loss(1.5) + pair_loss(-1.0)) / 2),
        (1e-6, pair_loss(1.5)),
    ],
    ids=["mean", "minimum"],
)
def test_it_lies_between_the_mean_and_the_least_dpo_loss(beta_prime: float, expected: float):
    objective = build({"name": "dr_dpo", "beta": 0.5, "beta_prime": beta_prime})

    losses = objective(inputs_of(POLICY, REFERENCE, SCORES)).losses

    assert losses[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta_prime", [0.01, 1.0, 7.0])
def test_one_group_alone_is_dpo(beta_prime: float):
    inputs = inputs_of([[1.0, -1.0, 0.5]], [[0.0, 0.0, 0.0]], [[3, 2, 2]])

    ours = losses_and_gradient(build({"name": "dr_dpo", "beta_prime": beta_prime}), inputs)

    for mine, dpos in zip(ours, losses_and_gradient(build({"name": "dpo"}), inputs), strict=True):
        torch.testing.assert_close(mine, dpos, rtol=1e-12, atol=1e-15)


def test_rewards_are_beta_times_log_ratios():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    assert build({"name": "dr_dpo", "beta": 0.5})(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_its_statistic_is_the_dpo_loss_and_whether_it_counts():
    objective = build({"name": "dr_dpo", "beta": 0.5})

    statistic = objective.statistic(inputs_of(POLICY, REFERENCE, SCORES))

    expected = [[pair_loss(1.5), 1.0], [pair_loss(-1.0), 1.0], [0.0, 0.0]]
    assert statistic.tolist() == [pytest.approx(row, rel=1e-12) for row in expected]


def test_a_part_of_a_step_has_the_weights_of_the_whole_step():
    objective = build({"name": "dr_dpo", "beta": 0.5})
    whole = inputs_of(POLICY, REFERENCE, SCORES)
    part = replace(one_by_one(whole)[1], step_statistics=objective.statistic(whole))

    losses, gradient = losses_and_gradient(objective, part)

    likely = [sigmoid(1.5), sigmoid(-1.0)]
    assert losses.tolist() == pytest.approx([-math.log(sum(likely) / 2)], rel=1e-12)
    # Divided by the two groups that the step counts: -w beta sigmoid(-m)
    slope = likely[1] / sum(likely) * 0.5 * sigmoid(1.0)
    assert (gradient / 2).tolist()[0] == pytest.approx([-slope, slope], rel=1e-12)


def test_a_part_in_which_nothing_counts_has_no_gradient():
    objective = build({"name": "dr_dpo", "beta": 0.5})
    whole = inputs_of(POLICY, REFERENCE, SCORES)
    part = replace(one_by_one(whole)[2], step_statistics=objective.statistic(whole))

    losses, gradient = losses_and_gradient(objective, part)

    assert losses.tolist() == [0.0]
    assert gradient.tolist() == [[0.0, 0.0]]


def test_pairs_that_cost_1000_nats_do_not_underflow():
    # The mean of exp(-1000 / 0.1) is 0 in any precision, and its logarithm -inf.
    objective = build({"name": "dr_dpo", "beta": 0.1, "beta_prime": 0.1})
    inputs = inputs_of([[-1e4, 0.0]] * 2, [[0.0, 0.0]] * 2, [[1, 0]] * 2, dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == pytest.approx([1000.0, 1000.0], rel=1e-5)
    # Weight 1/2 each, times 2 groups: -beta sigmoid(1000)
    flat = [-0.1, 0.1, -0.1, 0.1]
    assert gradient.flatten().tolist() == pytest.approx(flat, rel=1e-5)


@pytest.mark.parametrize("is_split", [False, True])
def test_a_hopeless_pair_beside_an_easy_one_has_no_weight(is_split: bool):
    objective = build({"name": "dr_dpo", "beta": 0.1})
    policy = [[1e4, 0.0], [-1e4, 0.0]]
    inputs = inputs_of(policy, [[0.0, 0.0]] * 2, [[1, 0]] * 2, dtype=torch.float32)
    if is_split:
        inputs = replace(inputs, step_statistics=objective.statistic(inputs))

    losses, gradient = losses_and_gradient(objective, inputs)

    # -log((1 + e^-1000) / 2)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_random_lists_cost_what_loops_say_however_the_step_is_split(num_slots: int):
    objective = build({"name": "dr_dpo", "beta": 0.1, "beta_prime": 2.0})
    drawn = draw(objective, seed=num_slots, num_groups=num_slots + 3, num_slots=num_slots)
    inputs = drawn.inputs

    group_losses = []
    for g in range(num_slots + 3):
        used = [k for k in range(num_slots) if inputs.where[g, k]]
        ratios = (inputs.policy_logps[g] - inputs.reference_logps[g]).tolist()
        scores = inputs.scores[g].tolist()
        costs = [
            pair_loss(0.1 * (ratios[i] - ratios[j]))
            for i in used
            for j in used
            if scores[i] > scores[j]
        ]
        group_losses += [sum(costs) / len(costs)] if costs else []
    terms = [math.exp(-loss / 2) for loss in group_losses]
    expected = -2 * math.log(sum(terms) / len(terms)) if terms else 0.0

    for micro_batches in ([inputs], one_by_one(inputs)):
        loss = step_loss(objective, micro_batches)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_coupled_within_micro_batches_it_is_the_authors_code():
    objective = build({"name": "dr_dpo", "beta": 0.5, "coupling": "micro_batch"})
    inputs = inputs_of(POLICY, REFERENCE, [[1, 0], [1, 0], [0, 1]])

    together = step_loss(objective, [inputs])
    apart = step_loss(objective, one_by_one(inputs))

    # The third margin is 0.5 * (-1 - 1) = -1. Apart, each pair is plain DPO.
    margins = [1.5, -1.0, -1.0]
    mean = sum(sigmoid(m) for m in margins) / 3
    assert together.item() == pytest.approx(-math.log(mean), rel=1e-12)
    assert apart.item() == pytest.approx(sum(map(pair_loss, margins)) / 3, rel=1e-12)


def test_coupled_within_micro_batches_it_asks_for_no_statistics_and_reads_none():
    objective = build({"name": "dr_dpo", "coupling": "micro_batch"})
    inputs = inputs_of(POLICY, REFERENCE, SCORES)
    other = replace(inputs, step_statistics=torch.full((9, 2), 5.0, dtype=torch.float64))

    assert not objective.couples_groups
    assert build({"name": "dr_dpo"}).couples_groups
    assert torch.equal(objective(other).losses, objective(inputs).losses)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"beta_prime": 0}, r"^objective\.beta_prime should be greater than 0, got 0\.$"),
        ({"coupling": "batch"}, r"^objective\.coupling should be 'step' or 'micro_batch'"),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "dr_dpo", **wrong})
