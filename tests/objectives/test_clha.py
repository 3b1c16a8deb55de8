"""CLHA against the formula of its code, worked out by hand and in loops."""

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient, one_by_one, step_loss
from tests.objectives.plain import Group, assert_costs, groups_of

CASES = [
    {"name": "clha", "score_gap": 0.3, "margin": 1.0},
    {"name": "clha", "score_gap": 0.0, "nll_weight": None},
    {"name": "clha"},
]


def ranking(group: Group, margin: float, gap: float) -> tuple[float, list[float]]:
    """Sum over distances of the mean hinge, and its gradient."""
    levels = sorted(set(group.scores), reverse=True)
    means, loss, slopes = group.means(), 0.0, [0.0] * len(group.scores)
    for d in range(1, len(levels)):
        alike = [
            (i, j)
            for i, j in group.pairs()
            if levels.index(group.scores[j]) - levels.index(group.scores[i]) == d
            and group.scores[i] - group.scores[j] > gap
        ]
        for i, j in alike:
            hinge = margin * d - (means[i] - means[j])
            loss += max(0.0, hinge) / len(alike)
            slopes[i] -= (hinge > 0) / len(alike) / group.num_tokens[i]
            slopes[j] += (hinge > 0) / len(alike) / group.num_tokens[j]
    return loss, slopes


def likelihood(group: Group) -> tuple[float, list[float]]:
    """(K - 1)^2 times the mean cost of the best responses, and its gradient."""
    k = len(group.scores)
    best = [i for i in range(k) if group.scores[i] == max(group.scores) and group.scores[i] > 0]
    slopes = [-((k - 1) ** 2) / len(best) if i in best else 0.0 for i in range(k)]
    return sum(slopes[i] * group.logps[i] for i in best), slopes


def cost(group: Group, nll_weight: float | None, margin: float, score_gap: float) -> float:
    return ranking(group, margin, score_gap)[0] + (nll_weight or 0) * likelihood(group)[0]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The reference says nothing here: the formula as it stands, in loops."""
    parameters = {key: v for key, v in objective.model_dump().items() if key != "name"}
    values = [cost(group, **parameters) for group in groups_of(inputs)]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def test_a_pair_costs_its_hinge_and_the_likelihood_of_the_better_one():
    objective = build({"name": "clha"})
    inputs = inputs_of([[-10.0, -24.0]], None, [[4, 0]], num_tokens=[[10, 8]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # l = (-1, -3): 3 - 2 = 1, and 0.05 * 1^2 * 10
    assert losses.item() == pytest.approx(1.5, rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([-0.1 - 0.05, 0.125], rel=1e-12)


def test_the_margin_grows_with_distance_and_each_distance_has_its_own_mean():
    objective = build({"name": "clha", "nll_weight": None, "margin": 2.0, "score_gap": 1.0})
    inputs = inputs_of([[-1.0, -2.0, -4.0]], None, [[9, 5, 1]])

    # d = 1: 2 - 1 = 1 and 2 - 2 = 0, mean 0.5; d = 2: 4 - 3 = 1
    assert objective(inputs).losses.tolist() == [1.5]


def test_pairs_whose_scores_are_no_further_apart_than_the_gap_are_left_out():
    objective = build({"name": "clha", "nll_weight": None, "margin": 2.0, "score_gap": 4.0})
    inputs = inputs_of([[-1.0, -2.0, -4.0], [-1.0, -2.0, -4.0]], None, [[9, 5, 1], [3, 2, 1]])

    output = objective(inputs)

    # Only the first and the last: d = 2, 4 - 3 = 1
    assert output.losses.tolist() == [1.0, 0.0]
    assert output.counted.tolist() == [True, False]


def test_tied_scores_share_a_rank():
    objective = build({"name": "clha", "nll_weight": None, "margin": 2.0, "score_gap": 0.0})
    inputs = inputs_of([[-1.0, -2.0, -4.0, -9.0]], None, [[5, 3, 3, 1]])

    # d = 1: 2 - 1 = 1, 0 (3 apart), 0 and 0, mean 0.25; d = 2: 0
    assert objective(inputs).losses.tolist() == [0.25]


@pytest.mark.parametrize("nll_weight", [0.05, None])
@pytest.mark.parametrize("num_slots", range(1, 17))
def test_ragged_lists_with_ties_cost_what_loops_say(num_slots: int, nll_weight: float | None):
    parameters = {"nll_weight": nll_weight, "margin": 1.5, "score_gap": 0.3}
    objective = build({"name": "clha", **parameters})

    def slopes(group: Group) -> list[float]:
        rank, nll = ranking(group, 1.5, 0.3)[1], likelihood(group)[1]
        return [a + (nll_weight or 0) * b for a, b in zip(rank, nll, strict=True)]

    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs
    assert_costs(objective, inputs, lambda group: cost(group, **parameters), slopes)


def test_the_likelihood_counts_k_minus_1_squared_times_and_only_above_0():
    objective = build({"name": "clha", "nll_weight": 0.5, "score_gap": 100.0})
    logps = [[-10.0, -20.0, -30.0]]

    # 0.5 * 2^2 * 10; two share the top: 0.5 * 2^2 * 15; the best score is not above 0
    assert objective(inputs_of(logps, None, [[3, 2, 1]])).losses.tolist() == [20.0]
    assert objective(inputs_of(logps, None, [[3, 3, 1]])).losses.tolist() == [30.0]
    assert objective(inputs_of(logps, None, [[0, -1, -2]])).losses.tolist() == [0.0]


def test_on_pairs_a_step_costs_what_the_authors_batch_does():
    objective = build({"name": "clha"})
    inputs = inputs_of([[-1.0, -2.0], [-2.0, -1.0], [-3.0, -5.0]], None, [[5, 0], [5, 4], [-1, -9]])

    # Two pairs are further apart than 3: hinges 3 - 1 = 2 and 3 - 2 = 1. Likelihood of three
    # groups, gated in the last: 0.05 * (1 + 2 + 0) / 3
    expected = (2 + 1) / 2 + 0.05
    assert step_loss(objective, [inputs]).item() == pytest.approx(expected, rel=1e-12)
    assert step_loss(objective, one_by_one(inputs)).item() == pytest.approx(expected, rel=1e-12)


def test_a_response_alone_says_nothing():
    output = build({"name": "clha"})(inputs_of([[-3.0]], None, [[5]]))

    assert output.losses.tolist() == [0.0]
    assert output.counted.tolist() == [False]


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_gaps_of_10000_nats_are_finite(gap: float):
    objective = build({"name": "clha", "nll_weight": None})
    inputs = inputs_of([[gap, 0.0]], None, [[5, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == [0.0 if gap > 0 else 10003.0]
    assert gradient.tolist()[0] == ([0.0, 0.0] if gap > 0 else [-1.0, 1.0])


def test_rewards_are_mean_log_probs():
    inputs = inputs_of([[-10.0, -30.0]], None, [[1, 0]], num_tokens=[[4, 10]])

    assert build({"name": "clha"})(inputs).rewards.tolist() == [[-2.5, -3.0]]


def test_a_gap_that_no_pair_exceeds_is_warned_of():
    where = torch.ones(1, 2, dtype=torch.bool)
    said = build({"name": "clha"}).warning(torch.tensor([[1.0, 0.0]]), where)

    assert said is not None
    assert said.startswith("score_gap = 3: no two responses")
    assert build({"name": "clha"}).warning(torch.tensor([[4.0, 0.0]]), where) is None
    assert build({"name": "clha"}).warning(torch.tensor([[4.0, 4.0]]), where) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"nll_weight": 0}, r"^objective\.nll_weight should be greater than 0, got 0\.$"),
        ({"margin": 0}, r"^objective\.margin should be greater than 0, got 0\.$"),
        ({"score_gap": -1}, r"^objective\.score_gap should be greater than or equal to 0, got -1"),
    ],
)
def test_a_wrong_parameter_says_which_and_why(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "clha", **section})
