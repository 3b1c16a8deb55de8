"""LiPO's seven ranking losses against their formulas, worked out by hand and in loops."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.plain import Group, assert_costs, groups_of

BETA = 0.1
RANKINGS = (
    "lambda",
    "pair_logistic",
    "pair_hinge",
    "list_mle",
    "softmax",
    "point_mse",
    "point_sigmoid",
)
CASES = [
    {"name": "lipo"},
    {"name": "lipo", "beta": 0.2, "ranking": "lambda"},
    *({"name": "lipo", "ranking": ranking} for ranking in RANKINGS[1:]),
]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def weights(group: Group, rewards: list[float]) -> dict[tuple[int, int], float]:
    """W of every pair; where rewards tie, the gap is a mean over pairs of the ranks they share."""

    def ranks(i: int) -> list[int]:
        above = sum(other > rewards[i] for other in rewards)
        return list(range(above + 1, above + rewards.count(rewards[i]) + 1))

    def discount(rank: int) -> float:
        return 1 / math.log(1 + rank)

    found = {}
    for i, j in group.pairs():
        # Two responses never hold the same rank, and without a tie they share none.
        gaps = [discount(a) - discount(b) for a in ranks(i) for b in ranks(j) if a != b]
        tied = rewards[i] == rewards[j]
        gap = sum(map(abs, gaps)) / len(gaps) if tied else abs(sum(gaps)) / len(gaps)
        found[i, j] = abs(2 ** group.scores[i] - 2 ** group.scores[j]) * gap
    return found


def cost(ranking: str, group: Group, r: list[float]) -> float:
    s, pairs = group.scores, group.pairs()
    if ranking == "lambda":
        w = weights(group, r)
        return sum(w[i, j] * softplus(r[j] - r[i]) for i, j in pairs)
    if ranking == "pair_logistic":
        return sum(softplus(r[j] - r[i]) for i, j in pairs)
    if ranking == "pair_hinge":
        return sum(max(0.0, 1 - (r[i] - r[j])) for i, j in pairs)
    if ranking == "list_mle":
        total = 0.0
        for i, own in enumerate(s):
            rivals = [r[j] for j, other in enumerate(s) if other <= own]
            total += math.log(sum(math.exp(x - r[i]) for x in rivals))
        return total
    if ranking == "softmax":
        shares = zip(s, softmax(r) if r else [], strict=True)
        return -sum(a / sum(s) * math.log(b) for a, b in shares) if sum(s) else 0.0
    if ranking == "point_mse":
        return sum((a - b) ** 2 for a, b in zip(s, r, strict=True))
    return sum(a * softplus(-b) + (1 - a) * softplus(b) for a, b in zip(s, r, strict=True))


def slopes(ranking: str, beta: float, group: Group, r: list[float]) -> list[float]:
    """The coefficients c_i of the reference table."""
    s, found = group.scores, [0.0] * len(r)
    if ranking in ("lambda", "pair_logistic", "pair_hinge"):
        w = weights(group, r)
        for i, j in group.pairs():
            pull = {
                "lambda": w[i, j] * sigmoid(r[j] - r[i]),
                "pair_logistic": sigmoid(r[j] - r[i]),
                "pair_hinge": float(r[i] - r[j] < 1),
            }[ranking]
            found[i] -= pull
            found[j] += pull
    elif ranking == "list_mle":
        for i, own in enumerate(s):
            rivals = [j for j, other in enumerate(s) if other <= own]
            for j, share in zip(rivals, softmax([r[j] for j in rivals]), strict=True):
                found[j] += share
            found[i] -= 1
    elif ranking == "softmax":
        if sum(s):
            found = [b - a / sum(s) for a, b in zip(s, softmax(r), strict=True)]
    elif ranking == "point_mse":
        found = [2 * (b - a) for a, b in zip(s, r, strict=True)]
    else:
        found = [sigmoid(b) - a for a, b in zip(s, r, strict=True)]
    return [beta * slope for slope in found]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All rewards are 0 and share the mean gap between two of the ranks 1 to K."""
    ranking, values = objective.model_dump()["ranking"], []
    for group in groups_of(inputs):
        s, k = group.scores, len(group.scores)
        ranks = [(a, b) for a in range(1, k + 1) for b in range(a + 1, k + 1)]
        gaps = [1 / math.log(1 + a) - 1 / math.log(1 + b) for a, b in ranks]
        gap = sum(gaps) / max(1, len(gaps))
        gains = sum(2 ** s[i] - 2 ** s[j] for i, j in group.pairs())
        values.append(
            {
                "lambda": gains * gap * math.log(2),
                "pair_logistic": len(group.pairs()) * math.log(2),
                "pair_hinge": float(len(group.pairs())),
                "list_mle": sum(math.log(sum(other <= own for other in s)) for own in s),
                "softmax": math.log(k) if sum(s) else 0.0,
                "point_mse": sum(own**2 for own in s),
                "point_sigmoid": k * math.log(2),
            }[ranking]
        )
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def a_list(ranking: str) -> tuple[float, list[float]]:
    """Loss and gradient over beta of rewards (1, -0.5, 2) with scores (0.5, 0, 1)."""
    inputs = inputs_of([[2.0, -1.0, 4.0]], [[0.0, 0.0, 0.0]], [[0.5, 0.0, 1.0]])
    objective = build({"name": "lipo", "beta": 0.5, "ranking": ranking})
    losses, gradient = losses_and_gradient(objective, inputs)
    return losses.item(), (gradient[0] / 0.5).tolist()


def test_lambda_weighs_a_pair_by_gain_and_discount():
    loss, gradient = a_list("lambda")

    # Ranks 2, 3, 1. W of (0, 1), (2, 0) and (2, 1):
    d1, d2, d3 = 1 / math.log(2), 1 / math.log(3), 1 / math.log(4)
    w01 = (2**0.5 - 1) * (d2 - d3)
    w20 = (2 - 2**0.5) * (d1 - d2)
    w21 = (2 - 1) * (d1 - d3)
    expected = w01 * softplus(-1.5) + w20 * softplus(-1.0) + w21 * softplus(-2.5)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert gradient == pytest.approx(
        [
            -w01 * sigmoid(-1.5) + w20 * sigmoid(-1.0),
            w01 * sigmoid(-1.5) + w21 * sigmoid(-2.5),
            -w20 * sigmoid(-1.0) - w21 * sigmoid(-2.5),
        ],
        rel=1e-12,
    )


def test_pairs_are_summed():
    # Margins 1.5, 1 and 2.5; a margin of 1 is where the hinge ends.
    assert a_list("pair_logistic")[0] == pytest.approx(
        softplus(-1.5) + softplus(-1.0) + softplus(-2.5), rel=1e-12
    )
    assert a_list("pair_hinge")[0] == 0


def test_list_mle_picks_the_best_of_those_that_are_left():
    loss, _ = a_list("list_mle")

    # 2 first of all three, then 0 of two, then 1 of one
    first = math.exp(2) / (math.exp(1) + math.exp(-0.5) + math.exp(2))
    assert loss == pytest.approx(-math.log(first) - math.log(sigmoid(1.5)), rel=1e-12)


def test_softmax_reads_scores_as_shares_of_their_sum():
    loss, _ = a_list("softmax")

    total = math.log(math.exp(1) + math.exp(-0.5) + math.exp(2))
    assert loss == pytest.approx((total - 1) / 3 + (total - 2) * 2 / 3, rel=1e-12)


def test_points_are_pulled_to_their_own_scores():
    # 0.5^2 + 0.5^2 + 1^2
    assert a_list("point_mse")[0] == pytest.approx(1.5, rel=1e-12)
    assert a_list("point_sigmoid")[0] == pytest.approx(
        softplus(-1) / 2 + softplus(1) / 2 + softplus(-0.5) + softplus(-2), rel=1e-12
    )


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("num_slots", range(1, 17))
def test_ragged_lists_with_ties_cost_what_loops_say(num_slots: int, ranking: str):
    objective = build({"name": "lipo", "beta": BETA, "ranking": ranking})
    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs

    assert_costs(
        objective,
        inputs,
        lambda group: cost(ranking, group, group.rewards(BETA)),
        lambda group: slopes(ranking, BETA, group, group.rewards(BETA)),
    )


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_lambda_with_tied_rewards_costs_what_loops_say(num_slots: int):
    objective = build({"name": "lipo", "beta": 0.25})
    inputs = draw(objective, seed=num_slots, num_groups=2 * num_slots, num_slots=num_slots).inputs
    # Few different rewards, exact in binary.
    policy = (inputs.policy_logps.detach() / 16).round()
    inputs = replace(inputs, policy_logps=policy, reference_logps=torch.zeros_like(policy))

    assert_costs(
        objective,
        inputs,
        lambda group: cost("lambda", group, group.rewards(0.25)),
        lambda group: slopes("lambda", 0.25, group, group.rewards(0.25)),
    )


@pytest.mark.parametrize("ranking", RANKINGS)
def test_at_the_start_the_order_of_the_responses_does_not_matter(ranking: str):
    objective = build({"name": "lipo", "ranking": ranking})
    zeros = [[0.0] * 4]

    losses, gradient = losses_and_gradient(objective, inputs_of(zeros, zeros, [[0.2, 1, 0.6, 0.6]]))
    again, turned = losses_and_gradient(objective, inputs_of(zeros, zeros, [[0.6, 0.6, 1, 0.2]]))

    torch.testing.assert_close(again, losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(turned, gradient[:, [2, 3, 1, 0]], rtol=1e-12, atol=1e-15)


def test_lambda_starts_to_learn_from_equal_rewards():
    zeros = [[0.0] * 3]

    _, gradient = losses_and_gradient(
        build({"name": "lipo"}), inputs_of(zeros, zeros, [[1, 0, 0.5]])
    )

    assert gradient[0, 0] < -0.001
    assert gradient[0, 1] > 0.001


@pytest.mark.parametrize("rewards", [[-3.0, 1.0], [1.0, -3.0], [0.5, 0.5]])
def test_lambda_on_a_pair_is_a_constant_times_dpo(rewards: list[float]):
    inputs = inputs_of([rewards], [[0.0, 0.0]], [[1, 0]])

    ours, our_gradient = losses_and_gradient(build({"name": "lipo", "beta": 0.3}), inputs)
    dpo, gradient = losses_and_gradient(build({"name": "dpo", "beta": 0.3}), inputs)

    # (2^1 - 2^0) (1 / ln 2 - 1 / ln 3), whichever of the two ranks first
    constant = 1 / math.log(2) - 1 / math.log(3)
    assert constant == pytest.approx(0.5325, abs=5e-5)
    torch.testing.assert_close(ours, constant * dpo, rtol=1e-12, atol=0)
    torch.testing.assert_close(our_gradient, constant * gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize("ranking", ["pair_logistic", "list_mle"])
def test_on_a_pair_it_is_dpo(ranking: str):
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[0.9, 0.2]])

    ours = losses_and_gradient(build({"name": "lipo", "beta": 0.3, "ranking": ranking}), inputs)
    dpo = losses_and_gradient(build({"name": "dpo", "beta": 0.3}), inputs)

    torch.testing.assert_close(ours, dpo, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ranking", "counted"),
    [
        # Scores: different; tied; alone; all 0; none.
        ("lambda", [True, False, False, False, False]),
        ("pair_logistic", [True, False, False, False, False]),
        ("pair_hinge", [True, False, False, False, False]),
        ("list_mle", [True, True, False, True, False]),
        ("softmax", [True, True, False, False, False]),
        ("point_mse", [True, True, True, True, False]),
        ("point_sigmoid", [True, True, True, True, False]),
    ],
)
def test_a_list_counts_if_it_says_something(ranking: str, counted: list[bool]):
    objective = build({"name": "lipo", "ranking": ranking})
    inputs = inputs_of(
        [[1.0, 2.0]] * 5,
        [[0.0, 0.0]] * 5,
        [[1, 0], [0.5, 0.5], [1, 0], [0, 0], [0, 0]],
        where=[[True, True], [True, True], [True, False], [True, True], [False, False]],
    )

    output = objective(inputs)

    assert output.counted.tolist() == counted
    assert (output.losses[~output.counted] == 0).all()


@pytest.mark.parametrize(
    ("ranking", "value"),
    [
        # r = (-1e4, 0) with scores (1, 0), so every loss but the square grows as the gap does.
        ("lambda", 1e4 * (1 / math.log(2) - 1 / math.log(3))),
        ("pair_logistic", 1e4),
        ("pair_hinge", 1e4 + 1),
        ("list_mle", 1e4),
        ("softmax", 1e4),
        ("point_mse", (1e4 + 1) ** 2),
        ("point_sigmoid", 1e4 + math.log(2)),
    ],
)
def test_a_best_response_10000_nats_behind_costs_a_finite_number(ranking: str, value: float):
    objective = build({"name": "lipo", "beta": 1.0, "ranking": ranking})
    inputs = inputs_of([[-1e4, 0.0]], [[0.0, 0.0]], [[1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.item() == pytest.approx(value, rel=1e-6)
    assert gradient[0, 0] < 0
    assert torch.isfinite(gradient).all()


def test_rewards_are_beta_times_log_ratios():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])

    assert build({"name": "lipo", "beta": 0.5})(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_it_says_that_scores_lie_between_0_and_1():
    assert build({"name": "lipo"}).score_range == (0.0, 1.0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"ranking": "listmle"}, r"^objective\.ranking should be 'lambda', 'pair_logistic', "),
        ({"alpha": 1.0}, r"^objective\.alpha: unknown key\."),
    ],
)
def test_a_wrong_parameter_says_which_and_why(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "lipo", **section})
