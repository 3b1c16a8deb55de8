"""SPPO against its equation, worked out by hand, with both kinds of win probabilities."""

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
    responses,
    sigmoid,
)

CASES = [
    {"name": "sppo"},
    {"name": "sppo", "beta": 0.1},
    {"name": "sppo", "beta": 0.1, "win_prob": "scores"},
    {"name": "sppo", "win_prob": "scores"},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All log-ratios are 0, so that only the squares of the targets are left."""
    beta, win_prob = (objective.model_dump()[key] for key in ("beta", "win_prob"))
    if win_prob == "hard":
        return mean_over_pairs(inputs, lambda w, r: 1 / (4 * beta**2))
    losses = [scored(group, beta, at_reference=True)[0] for group in responses(inputs)]
    return torch.tensor(losses, dtype=inputs.policy_logps.dtype)


def scored(
    group: list[Response], beta: float, *, at_reference: bool = False
) -> tuple[float, dict[int, float]]:
    """Loss of one group and its slope at each slot, win probabilities read from the scores."""
    if len(group) < 2:
        return 0.0, {}
    scores = [response.score for response in group]
    loss, slopes = 0.0, dict.fromkeys((response.slot for response in group), 0.0)
    for extreme in (max(scores), min(scores)):
        chosen = [response for response in group if response.score == extreme]
        win_prob = sum(sigmoid(extreme - score) for score in scores) / len(scores)
        for response in chosen:
            log_ratio = 0.0 if at_reference else response.log_ratio
            off = log_ratio - (win_prob - 0.5) / beta
            loss += 0.5 * off**2 / len(chosen)
            slopes[response.slot] += off / len(chosen)
    return loss, slopes


def test_a_hard_pair_costs_half_the_squares_from_plus_and_minus_one_half_over_beta():
    objective = build({"name": "sppo", "beta": 0.25})
    inputs = inputs_of([[-10.0, -30.0]], [[-11.0, -29.5]], [[1, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # h = (1, -0.5), targets (2, -2): ((1 - 2)^2 + (-0.5 + 2)^2) / 2, slopes 1 - 2 and -0.5 + 2
    assert losses.tolist() == [1.625]
    assert gradient.tolist() == [[-1.0, 1.5]]
    # 0.25 * (1, -0.5)
    assert objective(inputs).rewards.tolist() == [[0.25, -0.125]]


def test_a_scored_pair_has_the_targets_that_its_scores_say():
    objective = build({"name": "sppo", "beta": 0.25, "win_prob": "scores"})
    inputs = inputs_of([[-10.0, -30.0]], [[-11.0, -29.5]], [[3.0, 1.0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # p_w = (sigmoid(0) + sigmoid(2)) / 2, target (p_w - 1/2) / 0.25; the loser's is its negative
    target = 4 * ((0.5 + sigmoid(2.0)) / 2 - 0.5)
    expected = ((1 - target) ** 2 + (-0.5 + target) ** 2) / 2
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([1 - target, -0.5 + target], rel=1e-12)


def test_of_a_scored_list_only_the_best_and_the_worst_are_trained_but_all_are_opponents():
    objective = build({"name": "sppo", "beta": 0.5, "win_prob": "scores"})
    inputs = inputs_of([[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]], [[0.0, 2.0, 1.0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # The best is the second, p = (sigmoid(2) + sigmoid(0) + sigmoid(1)) / 3; the worst the first
    best = 2 * ((sigmoid(2.0) + 0.5 + sigmoid(1.0)) / 3 - 0.5)
    worst = 2 * ((0.5 + sigmoid(-2.0) + sigmoid(-1.0)) / 3 - 0.5)
    expected = ((2 - best) ** 2 + (1 - worst) ** 2) / 2
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    assert gradient.tolist()[0] == pytest.approx([1 - worst, 2 - best, 0.0], rel=1e-12)


def test_responses_that_share_the_best_score_share_its_square():
    objective = build({"name": "sppo", "beta": 0.5, "win_prob": "scores"})
    inputs = inputs_of([[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]])

    losses = objective(inputs).losses

    # p = (1/2 + 1/2 + sigmoid(1)) / 3 and (1/2 + 2 sigmoid(-1)) / 3
    best = 2 * ((1 + sigmoid(1.0)) / 3 - 0.5)
    worst = 2 * ((0.5 + 2 * sigmoid(-1.0)) / 3 - 0.5)
    expected = (((1 - best) ** 2 + (2 - best) ** 2) / 2 + (3 - worst) ** 2) / 2
    assert losses.item() == pytest.approx(expected, rel=1e-12)


def test_scored_responses_that_all_tie_are_pulled_to_the_reference():
    objective = build({"name": "sppo", "win_prob": "scores"})
    inputs = inputs_of([[3.0, -1.0]], [[0.0, 0.0]], [[7.0, 7.0]])

    output = objective(inputs)

    # p = 1/2, target 0: (9 + 1) / 2
    assert output.losses.tolist() == [5.0]
    assert output.counted.tolist() == [True]


@pytest.mark.parametrize("win_prob", ["hard", "scores"])
def test_a_response_alone_has_met_nobody(win_prob: str):
    objective = build({"name": "sppo", "win_prob": win_prob})

    output = objective(inputs_of([[3.0]], [[0.0]], [[1.0]]))

    assert output.losses.tolist() == [0.0]
    assert output.counted.tolist() == [False]


def test_what_scores_are_read_for_depends_on_win_prob():
    assert build({"name": "sppo"}).needs == "preferred_pairs"
    assert build({"name": "sppo", "win_prob": "scores"}).needs == "graded"


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_hard_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int):
    target = 1 / (2 * 0.02)

    def cost(w: Response, r: Response) -> float:
        return ((w.log_ratio - target) ** 2 + (r.log_ratio + target) ** 2) / 2

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        return w.log_ratio - target, r.log_ratio + target

    assert_is_the_mean_over_pairs(build({"name": "sppo", "beta": 0.02}), num_slots, cost, slopes)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_scored_lists_cost_what_loops_over_them_say(num_slots: int):
    objective = build({"name": "sppo", "beta": 0.02, "win_prob": "scores"})
    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    found = [scored(group, 0.02) for group in responses(inputs)]
    expected = torch.tensor([loss for loss, _ in found], dtype=torch.float64)
    expected_gradient = torch.zeros_like(gradient)
    for g, (_, slopes) in enumerate(found):
        for slot, slope in slopes.items():
            expected_gradient[g, slot] = slope
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("absurd", [float("nan"), float("inf"), -float("inf")])
def test_scores_of_unused_slots_leave_no_trace(absurd: float):
    objective = build({"name": "sppo", "win_prob": "scores"})
    policy, reference = [[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]
    where = [[True, True, False]]
    absurd_scores = inputs_of(policy, reference, [[0.9, 0.3, absurd]], where=where)
    inputs = inputs_of(policy, reference, [[0.9, 0.3, 0.0]], where=where)

    found, expected = (losses_and_gradient(objective, each) for each in (absurd_scores, inputs))

    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.isfinite(found[1]).all()


@pytest.mark.parametrize("win_prob", ["hard", "scores"])
def test_10000_nats_cost_their_square(win_prob: str):
    objective = build({"name": "sppo", "beta": 0.001, "win_prob": win_prob})
    # A gap of 1000 is a sure win: p_w = (1/2 + 1) / 2, half as far from 1/2 as a hard one.
    inputs = inputs_of([[-1e4, 0.0]], [[0.0, 0.0]], [[1e3, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    target = {"hard": 500.0, "scores": 250.0}[win_prob]
    expected = ((1e4 + target) ** 2 + target**2) / 2
    assert losses.item() == pytest.approx(expected, rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-1e4 - target, target], rel=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"win_prob": "soft"}, r"^objective\.win_prob should be 'hard' or 'scores', got 'soft'\.$"),
    ],
)
def test_wrong_values_are_refused(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "sppo", **section})
