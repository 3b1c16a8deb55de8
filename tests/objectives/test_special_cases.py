"""Objectives that are the same at special parameters, and the values that they start from.

The list of the reference notes on invariants, in one place; K = 2 unless said otherwise.
"""

import math

import pytest
import torch

from prefopt.objectives import build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import inputs_of, losses_and_gradient, step_loss

BETA = 0.3
DPO = {"name": "dpo", "beta": BETA}
LOGS = (1 / math.log(2) - 1 / math.log(3)) * (2**1 - 2**0)


def pairs(scores: tuple[float, float] = (1.0, 0.0)) -> ObjectiveInputs:
    """Five pairs on both sides of a margin of 0, of different lengths."""
    generator = torch.Generator().manual_seed(3)
    policy, reference = (
        (-40 + 35 * torch.rand(5, 2, generator=generator, dtype=torch.float64)).tolist()
        for _ in range(2)
    )
    lengths = [[4, 9], [7, 7], [12, 3], [1, 2], [5, 8]]
    return inputs_of(policy, reference, [list(scores)] * 5, num_tokens=lengths)


def assert_same(
    one: dict[str, object],
    other: dict[str, object],
    *,
    factor: float = 1.0,
    shift: float = 0.0,
    inputs: ObjectiveInputs | None = None,
    tolerance: float = 1e-10,
) -> None:
    """one = factor * other + shift, in losses and gradients."""
    inputs = pairs() if inputs is None else inputs
    losses, gradient = losses_and_gradient(build(one), inputs)
    expected, expected_gradient = losses_and_gradient(build(other), inputs)
    torch.testing.assert_close(losses, factor * expected + shift, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, factor * expected_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("section", "factor"),
    [
        ({**DPO, "label_smoothing": 0.0}, 1.0),
        ({"name": "robust_dpo", "beta": BETA, "label_smoothing": 0.0}, 1.0),
        # gamma 1e3: a win probability of 1 - e^-1000
        ({"name": "mmpo", "beta": BETA, "gamma": 1e3}, 1.0),
        ({"name": "infonca", "beta": BETA, "alpha": 1e-3}, 1.0),
        ({"name": "lipo", "beta": BETA, "ranking": "pair_logistic"}, 1.0),
        ({"name": "lipo", "beta": BETA, "ranking": "list_mle"}, 1.0),
        ({"name": "lipo", "beta": BETA, "ranking": "lambda"}, LOGS),
        ({"name": "d2o", "beta": BETA, "alpha": BETA}, 1.0),
        ({"name": "ranking_gamma", "beta": BETA, "gamma": 1.0}, 1.0),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_special_cases_of_dpo(section, factor):
    assert_same(section, DPO, factor=factor)


def test_lambda_of_a_pair_does_not_depend_on_the_current_order():
    assert pytest.approx(0.5325, abs=1e-4) == LOGS
    tied = inputs_of([[-5.0, -5.0]], [[-5.0, -5.0]], [[1, 0]])

    assert_same({"name": "lipo", "beta": BETA}, DPO, factor=LOGS, inputs=tied)


def test_dr_dpo_is_dpo_for_one_group_and_in_the_limit():
    inputs = pairs()
    dpo, near = build(DPO), build({"name": "dr_dpo", "beta": BETA, "beta_prime": 1e9})
    alone = build({"name": "dr_dpo", "beta": BETA, "beta_prime": 0.7})
    one = inputs_of([[-5.0, -9.0]], [[-7.0, -8.0]], [[1, 0]])

    torch.testing.assert_close(
        step_loss(near, [inputs]), step_loss(dpo, [inputs]), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(step_loss(alone, [one]), step_loss(dpo, [one]), rtol=1e-12, atol=0)


def test_mmpo_is_cdpo_of_the_probability_that_the_scores_say():
    # p = sigmoid(2 (1.3 - 0.4)) = 1 - eps
    eps = 1 - 1 / (1 + math.exp(-2 * 0.9))
    mmpo = {"name": "mmpo", "beta": BETA, "gamma": 2.0}

    assert_same(mmpo, {**DPO, "label_smoothing": eps}, inputs=pairs((1.3, 0.4)))


def test_nca_of_a_pair_is_nca_with_a_one_hot_label():
    assert_same({"name": "nca", "beta": BETA}, {"name": "nca", "beta": BETA, "alpha": 1e-3})


def test_bco_is_nca_without_the_half_weight_of_what_is_chosen():
    inputs = pairs()
    rewards = BETA * inputs.log_ratios()
    biased = -torch.nn.functional.logsigmoid(rewards * torch.tensor([1.0, -1.0])).sum(dim=1)

    losses, _ = losses_and_gradient(build({"name": "bco", "beta": BETA}), inputs)

    torch.testing.assert_close(losses, biased.detach(), rtol=1e-12, atol=0)


def test_npo_is_gradient_ascent_as_beta_goes_to_0():
    inputs = inputs_of([[-5.0], [-20.0]], [[-7.0], [-15.0]], [[0], [0]])
    npo = {"name": "npo", "beta": 1e-7, "retain": "none"}

    _, gradient = losses_and_gradient(build(npo), inputs)
    _, ascent = losses_and_gradient(
        build({"name": "grad_ascent", "reduction": "sequence_sum"}), inputs
    )

    # 2 sigmoid(beta h) = 1 + beta h / 2
    torch.testing.assert_close(gradient, ascent, rtol=1e-6, atol=0)


def test_regression_on_half_of_1_over_tau_is_ipo():
    regression = {"name": "pair_regression", "scale": 1.0, "target": 1 / (2 * 0.25)}

    assert_same(regression, {"name": "ipo", "tau": 0.25, "length_normalized": False})


def test_asft_exceeds_orpo_by_a_term_that_is_never_negative():
    inputs = pairs()
    orpo = {"name": "orpo", "odds_weight": 1.0, "nll_weight": None}
    asft = {"name": "asft", "beta": 1.0, "odds_weight": 1.0, "nll_weight": None}

    less, _ = losses_and_gradient(build(orpo), inputs)
    more, _ = losses_and_gradient(build(asft), inputs)

    # ORPO = ASFT + log(p_w (1 - p_l) + p_l (1 - p_w)), p the probability of a mean token
    p = (inputs.policy_logps / inputs.num_tokens).exp().detach()
    gap = (p[:, 0] * (1 - p[:, 1]) + p[:, 1] * (1 - p[:, 0])).log()
    torch.testing.assert_close(less, more + gap, rtol=1e-10, atol=1e-10)
    assert (less <= more).all()


EPS = 1e-3
START = [
    ({**DPO}, math.log(2)),
    ({**DPO, "label_smoothing": 0.2}, math.log(2)),
    ({"name": "robust_dpo", "label_smoothing": 0.2}, math.log(2)),
    ({"name": "mmpo", "gamma": 0.7}, math.log(2)),
    ({"name": "dr_dpo", "beta_prime": 0.2}, math.log(2)),
    ({"name": "infonca", "alpha": 0.5}, math.log(2)),
    ({"name": "nca"}, 2 * math.log(2)),
    ({"name": "nca", "alpha": 0.5}, 2 * math.log(2)),
    ({"name": "ipo", "tau": 0.2}, 1 / (4 * 0.2**2)),
    ({"name": "lipo", "ranking": "pair_logistic"}, math.log(2)),
    ({"name": "bco"}, 2 * math.log(2)),
    ({"name": "apo_zero"}, 1.0),
    ({"name": "apo_down"}, 1.0),
    ({"name": "cal_dpo", "beta": 0.3}, math.log(2) + 1 / (2 * 0.3**2)),
    ({"name": "sppo", "beta": 0.3}, 1 / (4 * 0.3**2)),
    ({"name": "exo", "label_smoothing": EPS}, -math.log(2) - math.log(EPS * (1 - EPS)) / 2),
]


@pytest.mark.parametrize(("section", "value"), START, ids=lambda value: str(value)[:40])
def test_where_a_pair_starts_if_the_policy_is_the_reference(section, value):
    inputs = inputs_of([[-5.0, -9.0]], [[-5.0, -9.0]], [[1, 0]], num_tokens=[[3, 4]])

    losses, _ = losses_and_gradient(build(section), inputs)

    assert losses.item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("section", "score", "value", "slope"),
    [
        # Forgetting starts with the gradient of ascent: 2 / beta log 2, slope 1.
        ({"name": "npo", "beta": 0.1, "retain": "none"}, 0, 2 / 0.1 * math.log(2), 1.0),
        # 1 - sigmoid(0), slope -+ beta sigmoid(0) sigmoid(0)
        ({"name": "kto", "beta": 0.1}, 1, 0.5, -0.1 / 4),
        ({"name": "kto", "beta": 0.1}, 0, 0.5, 0.1 / 4),
    ],
)
def test_where_a_single_response_starts(section, score, value, slope):
    inputs = inputs_of([[-5.0]], [[-5.0]], [[score]])

    losses, gradient = losses_and_gradient(build(section), inputs)

    assert losses.item() == pytest.approx(value, rel=1e-12)
    assert gradient.item() == pytest.approx(slope, rel=1e-12)


def test_infonca_of_k_responses_starts_at_log_k():
    inputs = inputs_of([[-5.0] * 6], [[-5.0] * 6], [[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]])

    losses, _ = losses_and_gradient(build({"name": "infonca", "alpha": 0.3}), inputs)

    assert losses.item() == pytest.approx(math.log(6), rel=1e-12)
