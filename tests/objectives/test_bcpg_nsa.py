"""BCPG-NSA against its formula, worked out by hand."""

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, loss_gradient, losses_and_gradient
from tests.objectives.tokens import token_inputs_of, tokens_of, with_token_fields

CASES = [
    {"name": "bcpg_nsa"},
    {"name": "bcpg_nsa", "beta": 1.0, "tau": 0.1},
    {"name": "bcpg_nsa", "beta": -0.4, "tau": 0.02},
]
# Three responses of 2, 3 and 1 tokens; h = (1, -2, 0). The mean of the scores is 1/3.
POLICY = [[[-1.0, -2.0], [-3.0, -1.0, -4.0], [-5.0]]]
REFERENCE = [[[-1.5, -2.5], [-2.0, -1.0, -3.0], [-5.0]]]
SCORES = [[1, 0, 0]]
LOGPS, LOG_RATIOS, LENGTHS = (-3.0, -8.0, -5.0), (1.0, -2.0, 0.0), (2, 3, 1)


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The square is 0; the policy gradient is summed token by token."""
    return brute_force(objective, inputs, inputs.policy_logps - inputs.policy_logps)


def brute_force(objective: Objective, inputs: ObjectiveInputs, log_ratios: Tensor) -> Tensor:
    tau, beta = (objective.model_dump()[name] for name in ("tau", "beta"))
    values = []
    for g in range(inputs.where.shape[0]):
        used = [k for k, is_used in enumerate(inputs.where[g].tolist()) if is_used]
        scores = {k: inputs.scores[g, k].item() for k in used}
        gains = []
        for k in used:
            advantage = scores[k] - sum(scores.values()) / len(used)
            total = inputs.policy_logps[g, k].item() if beta == 1 else 0.0
            for t in tokens_of(inputs, g, k) if beta != 1 else []:
                tokens = inputs.token_inputs()
                share = tokens.weights[t].item() if advantage < 0 else 0.0
                total += (1 - share + beta * share) * tokens.policy_logps[t].item()
            square = tau / 2 * log_ratios[g, k].item() ** 2
            gains.append((advantage * total - square) / int(inputs.num_tokens[g, k]))
        is_tied = len(set(scores.values())) < 2
        values.append(0.0 if is_tied else -sum(gains) / len(gains))
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def a_list(weights: list[float]) -> tuple[Tensor, ObjectiveInputs]:
    leaf, inputs = token_inputs_of(POLICY, SCORES, reference=REFERENCE)
    return leaf, with_token_fields(inputs, weights=weights)


def test_without_sparing_it_needs_no_tokens_and_is_bcpg():
    objective = build({"name": "bcpg_nsa", "tau": 0.3, "beta": 1})
    reference = [[p - h for p, h in zip(LOGPS, LOG_RATIOS, strict=True)]]
    inputs = inputs_of([list(LOGPS)], reference, SCORES, num_tokens=[list(LENGTHS)])

    losses, gradient = losses_and_gradient(objective, inputs)

    advantages = (2 / 3, -1 / 3, -1 / 3)
    rows = list(zip(advantages, LOGPS, LOG_RATIOS, LENGTHS, strict=True))
    gains = [(a * logp - 0.3 / 2 * h**2) / n for a, logp, h, n in rows]
    assert losses.tolist() == pytest.approx([-sum(gains) / 3], rel=1e-12)
    slopes = [-(a - 0.3 * h) / (3 * n) for a, _, h, n in rows]
    assert gradient.tolist()[0] == pytest.approx(slopes, rel=1e-12)
    assert objective(inputs).rewards.tolist()[0] == pytest.approx([0.3, -0.6, 0.0])
    assert not objective.needs_tokens
    assert not objective.needs_token_weights


@pytest.mark.parametrize("beta", [0.5, 0.0, -1.0])
def test_correct_steps_of_low_responses_bear_beta_of_their_score(beta: float):
    objective = build({"name": "bcpg_nsa", "tau": 0.3, "beta": beta})
    # All steps of the first response are correct too, but its score is above the mean.
    leaf, inputs = a_list([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])

    losses = objective(inputs).losses

    # Sums of b_t log pi: -3; beta (-3 - 1) - 4; -5
    sums = (-3.0, beta * -4.0 - 4.0, -5.0)
    advantages = (2 / 3, -1 / 3, -1 / 3)
    rows = list(zip(advantages, sums, LOG_RATIOS, LENGTHS, strict=True))
    gains = [(a * total - 0.3 / 2 * h**2) / n for a, total, h, n in rows]
    assert losses.tolist() == pytest.approx([-sum(gains) / 3], rel=1e-12)
    # Per token -(b_t (s - mean s) - tau h) / (3 n)
    first, spared, blamed, last = (
        -(2 / 3 - 0.3) / 6,
        -(beta * -1 / 3 + 0.6) / 9,
        -(-1 / 3 + 0.6) / 9,
        -(-1 / 3) / 3,
    )
    expected = [first, first, spared, spared, blamed, last]
    assert loss_gradient(losses, leaf).tolist() == pytest.approx(expected, rel=1e-12)
    assert objective.needs_tokens
    assert objective.needs_token_weights


def test_no_correct_steps_is_the_same_as_no_sparing():
    _, inputs = a_list([0.0] * 6)

    spared = build({"name": "bcpg_nsa", "beta": -0.5})(inputs).losses
    plain = build({"name": "bcpg_nsa", "beta": 1})(inputs).losses

    torch.testing.assert_close(spared, plain, rtol=1e-12, atol=0)


def test_the_gradient_vanishes_where_the_log_ratio_is_the_advantage_by_tau():
    objective = build({"name": "bcpg_nsa", "tau": 0.1, "beta": 1})
    # Advantages 0.5 and -0.5: h = 5 and -5
    inputs = inputs_of([[-5.0, -15.0]], [[-10.0, -10.0]], [[1, 0]], num_tokens=[[3, 4]])

    _, gradient = losses_and_gradient(objective, inputs)

    assert gradient.abs().max() < 1e-15
    assert objective(inputs).rewards.tolist() == [[0.5, -0.5]]


def test_groups_that_are_all_right_or_all_wrong_are_not_counted():
    objective = build({"name": "bcpg_nsa", "beta": 1})
    inputs = inputs_of([[-1.0, -2.0], [-1.0, -2.0]], [[0.0, 0.0]] * 2, [[1, 1], [0, 0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    assert objective(inputs).counted.tolist() == [False, False]
    assert losses.tolist() == [0.0, 0.0]
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("section", CASES, ids=str)
@pytest.mark.parametrize("num_slots", range(1, 17))
def test_random_lists_cost_what_loops_say(num_slots: int, section: dict[str, object]):
    objective = build(section)
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 1, num_slots=num_slots).inputs

    losses = objective(inputs).losses

    expected = brute_force(objective, inputs, inputs.policy_logps - inputs.reference_logps)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_log_ratio_of_10000_nats_is_pulled_back(beta: float):
    leaf, inputs = token_inputs_of(
        [[[0.0], [-1e4]]], [[1, 0]], reference=[[[-1e4], [0.0]]], dtype=torch.float32
    )
    inputs = with_token_fields(inputs, dtype=torch.float32, weights=[0.0, 0.0])

    losses = build({"name": "bcpg_nsa", "tau": 1e-3, "beta": beta})(inputs).losses

    # -(0 - 5e4 + 5e3 - 5e4) / 2, slopes -(0.5 - 10) / 2 and -(-0.5 + 10) / 2
    assert losses.item() == pytest.approx(47500.0, rel=1e-6)
    assert loss_gradient(losses, leaf).tolist() == pytest.approx([4.75, -4.75], rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tau": 0}, r"^objective\.tau should be greater than 0, got 0\.$"),
        ({"beta": 1.5}, r"^objective\.beta should be less than or equal to 1, got 1\.5\.$"),
        ({"beta": -2}, r"^objective\.beta should be greater than or equal to -1, got -2\.$"),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "bcpg_nsa", **wrong})
