"""NPO: forgetting by hand, its limits, and each way to retain."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs, TokenInputs
from tests.objectives.helpers import (
    draw,
    inputs_of,
    loss_gradient,
    losses_and_gradient,
    one_by_one,
    step_loss,
)
from tests.objectives.singly import labelled, log_ratio, logp, per_group, sigmoid, softplus

CASES = [
    {"name": "npo"},
    {"name": "npo", "beta": 0.5, "retain": "none"},
    {"name": "npo", "beta": 0.2, "retain": "nll", "retain_weight": 2.0},
    {"name": "npo", "beta": 1.0, "retain": "kl", "retain_weight": 0.5},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """(2 / beta) log 2 for each forgotten response, and nothing for a KL of 0."""

    def retain(g: int) -> float:
        if objective.retain != "nll":
            return 0.0
        return -objective.retain_weight * sum(logp(inputs, g, k) for k in labelled(inputs, g, 1))

    each = 2 / objective.beta * math.log(2)
    return per_group(inputs, lambda g: each * len(labelled(inputs, g, 0)) + retain(g))


def test_a_forgotten_response_costs_what_the_formula_says():
    objective = build({"name": "npo", "beta": 0.5, "retain": "none"})
    inputs = inputs_of([[-10.0]], [[-13.0]], [[0]], num_tokens=[[7]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # Delta = 3: -(2 / 0.5) log sigmoid(-1.5), with slope 2 sigmoid(1.5)
    assert losses.item() == pytest.approx(-4 * math.log(sigmoid(-1.5)), rel=1e-12)
    assert gradient.item() == pytest.approx(2 * sigmoid(1.5), rel=1e-12)


def test_rewards_are_beta_times_log_ratios():
    objective = build({"name": "npo", "beta": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-13.0, -29.0]], [[0, 1]])

    assert objective(inputs).rewards.tolist() == [[1.5, -0.5]]


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
def test_where_the_policy_is_the_reference_it_is_gradient_ascent(beta: float):
    inputs = inputs_of([[-10.0, -4.0]], [[-10.0, -4.0]], [[0, 0]])

    _, gradient = losses_and_gradient(build({"name": "npo", "beta": beta}), inputs)

    assert gradient.tolist() == [[1.0, 1.0]]


def test_as_beta_goes_to_0_it_becomes_gradient_ascent():
    npo = build({"name": "npo", "beta": 1e-9, "retain": "none"})
    ascent = build({"name": "grad_ascent", "reduction": "sequence_sum"})
    inputs = draw(npo, num_groups=12).inputs

    _, gradient = losses_and_gradient(npo, inputs)
    _, expected = losses_and_gradient(ascent, inputs)

    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=0)


def test_each_side_has_its_own_denominator_over_the_step():
    objective = build({"name": "npo", "beta": 0.5, "retain": "nll", "retain_weight": 2.0})
    inputs = inputs_of(
        [[-10.0, -30.0], [-8.0, -1.0], [-6.0, -9.0]],
        [[-13.0, -1.0], [-6.0, -5.0], [-1.0, -1.0]],
        [[0, 1], [0, 0], [1, 1]],
        num_tokens=[[4, 10], [7, 2], [3, 100]],
        where=[[True, True], [True, True], [True, False]],
    )

    whole = step_loss(objective, [inputs])
    split = step_loss(objective, one_by_one(inputs))

    # Forgotten: Delta = 3, -2, 4, the mean of 3; retained: 36 nats over 13 tokens
    forget = -4 * sum(math.log(sigmoid(-0.5 * d)) for d in (3, -2, 4)) / 3
    assert whole.item() == pytest.approx(forget + 2 * 36 / 13, rel=1e-12)
    assert split.item() == pytest.approx(whole.item(), rel=1e-12)
    gradient = loss_gradient(whole, inputs.policy_logps)
    assert gradient[0].tolist() == pytest.approx([2 * sigmoid(1.5) / 3, -2 / 13], rel=1e-12)


def test_without_retaining_responses_of_score_1_are_not_counted():
    objective = build({"name": "npo", "retain": "none"})
    inputs = inputs_of([[-1.0, -2.0], [-1.0, -2.0]], [[0.0, 0.0]] * 2, [[1, 1], [1, 0]])

    output = objective(inputs)

    assert output.counted.tolist() == [False, True]
    assert output.losses[0].item() == 0.0
    assert list(output.all_terms()) == ["forget"]
    assert not objective.needs_tokens


def test_a_pair_is_two_groups_of_one():
    objective = build({"name": "npo", "beta": 0.3})
    pair = inputs_of([[-1.0, -2.0]], [[-3.0, -1.0]], [[0, 1]], num_tokens=[[2, 3]])
    apart = inputs_of([[-1.0], [-2.0]], [[-3.0], [-1.0]], [[0], [1]], num_tokens=[[2], [3]])

    assert step_loss(objective, [pair]).item() == pytest.approx(
        step_loss(objective, [apart]).item(), rel=1e-14
    )


def kl_inputs(kl: Tensor) -> ObjectiveInputs:
    """Responses of 2, 1 and 3 tokens; the first is to forget."""
    inputs = inputs_of(
        [[-3.0, -1.0], [-6.0, 0.0]],
        [[-3.0, -1.0], [-6.0, 0.0]],
        [[0, 1], [1, 0]],
        num_tokens=[[2, 1], [3, 0]],
        where=[[True, True], [True, False]],
    )
    response = torch.tensor([0, 0, 1, 2, 2, 2])
    logps = torch.tensor([-1.5, -1.5, -1.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    tokens = TokenInputs(
        policy_logps=logps,
        reference_logps=logps,
        response=response,
        labels=torch.zeros_like(response),
        reference_kl=kl,
    )
    return replace(inputs, tokens=tokens)


def test_the_kl_is_the_mean_over_retained_tokens():
    objective = build({"name": "npo", "beta": 1.0, "retain": "kl", "retain_weight": 0.5})
    kl = torch.tensor([9.0, 9.0, 0.1, 0.2, 0.3, 0.6], dtype=torch.float64, requires_grad=True)

    output = objective(kl_inputs(kl))
    loss = step_loss(objective, [kl_inputs(kl)])

    # 0.1 and 0.2 + 0.3 + 0.6 over 4 tokens; the tokens to forget are left out
    assert output.all_terms()["retain"].losses.tolist() == pytest.approx([0.1, 1.1], rel=1e-12)
    assert output.all_terms()["retain"].weight.tolist() == [1.0, 3.0]
    assert loss.item() == pytest.approx(2 * math.log(2) + 0.5 * 1.2 / 4, rel=1e-12)
    assert loss_gradient(loss, kl).tolist() == pytest.approx([0.0, 0.0, *[0.125] * 4], rel=1e-12)


def test_only_the_kl_looks_at_the_vocabulary_and_only_of_what_is_retained():
    with_kl, with_nll = (build({"name": "npo", "retain": retain}) for retain in ("kl", "nll"))
    scores = torch.tensor([[0.0, 1.0, 1.0]])
    where = torch.tensor([[True, True, False]])

    assert with_kl.needs_reference_distribution
    assert with_kl.needs_tokens
    assert not with_nll.needs_reference_distribution
    assert not with_nll.needs_tokens
    assert with_kl.responses_with_statistics(scores, where).tolist() == [[False, True, False]]


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_every_response_counts_alone(num_slots: int):
    objective = build({"name": "npo", "beta": 0.05, "retain_weight": 0.3})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    expected = torch.zeros_like(gradient)
    for g in range(num_slots + 2):
        cost = 0.0
        for k in labelled(inputs, g, 0):
            cost += 2 / 0.05 * softplus(0.05 * log_ratio(inputs, g, k))
            expected[g, k] = 2 * sigmoid(0.05 * log_ratio(inputs, g, k))
        for k in labelled(inputs, g, 1):
            cost -= 0.3 * logp(inputs, g, k)
            expected[g, k] = -0.3
        assert losses[g].item() == pytest.approx(cost, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("log_ratio", "loss", "slope"), [(1e4, 2e4, 2.0), (-1e4, 0.0, 0.0)])
def test_log_ratios_of_10000_nats_stay_finite(log_ratio: float, loss: float, slope: float):
    objective = build({"name": "npo", "beta": 0.1, "retain": "none"})
    inputs = inputs_of(
        [[min(log_ratio, 0.0)]], [[min(-log_ratio, 0.0)]], [[0]], dtype=torch.float32
    )

    losses, gradient = losses_and_gradient(objective, inputs)

    # (2 / beta) log(1 + e^1000) = 2 * 1e4
    assert losses.item() == pytest.approx(loss, rel=1e-6)
    assert gradient.item() == pytest.approx(slope, rel=1e-6)


def test_metrics_are_mean_log_probs_of_a_token_of_either_side():
    objective = build({"name": "npo"})
    inputs = inputs_of(
        [[-10.0, -6.0, -2.0], [-3.0, -3.0, -3.0]],
        [[0.0] * 3] * 2,
        [[0, 0, 1], [0, 0, 0]],
        num_tokens=[[5, 6, 4], [1, 1, 3]],
    )

    metrics = objective(inputs).metrics

    # (-10 / 5 - 6 / 6) / 2, -2 / 4; (-3 - 3 - 1) / 3 and nobody
    assert metrics["mean_logps/forget"].tolist() == pytest.approx([-1.5, -7 / 3])
    assert metrics["mean_logps/retain"].tolist() == pytest.approx([-0.5, float("nan")], nan_ok=True)


def test_it_says_that_responses_to_retain_are_left_out():
    scores, where = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    alone = build({"name": "npo", "retain": "none"})

    assert "retains nothing" in alone.warning(scores, where)
    assert alone.warning(scores[:, :1], where[:, :1]) is None
    assert build({"name": "npo"}).warning(scores, where) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"retain_weight": 0}, r"^objective\.retain_weight should be greater than 0, got 0\.$"),
        ({"retain": "ce"}, r"^objective\.retain should be 'none', 'nll' or 'kl', got 'ce'\.$"),
        (
            {"retain": "none", "retain_weight": 2.0},
            r"^objective\.retain_weight: has no effect with retain: none\.",
        ),
    ],
)
def test_a_wrong_parameter_is_refused(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "npo", **section})
