"""log(1 - e^x), where the plain form loses all digits or is infinite."""

import math

import pytest
import torch

from prefopt.ops.log1mexp import log1mexp, log_odds

EPS32 = 2.0**-23
EPS64 = 2.0**-52


def value_and_slope(x: float, dtype: torch.dtype) -> tuple[float, float]:
    leaf = torch.tensor([x], dtype=dtype, requires_grad=True)
    value = log1mexp(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.item(), slope.item()


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.49, 0.5, 0.51, 0.9, 0.999])
def test_it_is_the_log_of_the_other_probability(p: float):
    value, slope = value_and_slope(math.log(p), torch.float64)

    assert value == pytest.approx(math.log(1 - p), rel=1e-12)
    # d log(1 - e^x) / dx = -p / (1 - p)
    assert slope == pytest.approx(-p / (1 - p), rel=1e-12)


def test_at_the_border_of_its_two_forms_it_is_log_half():
    value, slope = value_and_slope(-math.log(2), torch.float64)

    assert value == pytest.approx(-math.log(2), rel=1e-15)
    assert slope == pytest.approx(-1.0, rel=1e-15)


@pytest.mark.parametrize("x", [-1e-3, -1e-6, -2e-7])
def test_near_0_it_keeps_all_digits_in_float32(x: float):
    value, slope = value_and_slope(x, torch.float32)

    # 1 - e^x = -x - x^2 / 2 up to x^3, and its slope is -(1 - (1 - e^x)) / (1 - e^x)
    other = -x - x * x / 2
    assert value == pytest.approx(math.log(other), rel=1e-6)
    assert slope == pytest.approx(-(1 - other) / other, rel=1e-5)


@pytest.mark.parametrize("x", [-20.0, -80.0])
def test_far_below_0_it_is_minus_the_probability(x: float):
    value, slope = value_and_slope(x, torch.float32)

    # log(1 - p) = -p up to p^2, and so is its slope
    assert value == pytest.approx(-math.exp(x), rel=1e-6)
    assert slope == pytest.approx(-math.exp(x), rel=1e-6)


@pytest.mark.parametrize("x", [-1e4, -math.inf])
def test_what_never_happens_leaves_all_to_the_rest(x: float):
    assert value_and_slope(x, torch.float32) == (0.0, 0.0)


@pytest.mark.parametrize("x", [-1e-9, 0.0, 1e-9])
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, EPS32), (torch.float64, EPS64)])
def test_at_0_it_is_the_log_of_the_rounding_error(x: float, dtype: torch.dtype, eps: float):
    if dtype == torch.float64 and x < 0:
        pytest.skip("1e-9 is far from 0 in float64")

    value, slope = value_and_slope(x, dtype)

    assert value == pytest.approx(math.log(eps), rel=1e-6)
    assert slope == 0.0


def test_both_forms_have_exact_slopes():
    x = torch.tensor([-5.0, -0.8, -0.6, -0.1, -1e-3], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(log1mexp, (x,))


def test_log_odds_are_those_of_the_probability():
    odds = log_odds(torch.tensor([math.log(0.8), math.log(0.5)], dtype=torch.float64))

    # 0.8 / 0.2 = 4, and even odds are 1
    assert odds.tolist() == pytest.approx([math.log(4), 0.0], abs=1e-15)


def test_log_odds_are_the_log_prob_far_below_0_and_finite_at_0():
    odds = log_odds(torch.tensor([-1e4, 0.0], dtype=torch.float32))

    # the second is cut at the rounding error: 0 - log(2^-23)
    assert odds.tolist() == pytest.approx([-1e4, 23 * math.log(2)])


def test_log_sigmoid_of_the_log_odds_is_the_log_prob():
    logps = torch.linspace(-9, -0.01, 20, dtype=torch.float64)

    odds = log_odds(logps)

    log_sigmoid = torch.nn.functional.logsigmoid
    torch.testing.assert_close(log_sigmoid(odds), logps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_sigmoid(-odds), log1mexp(logps), rtol=1e-12, atol=1e-12)
