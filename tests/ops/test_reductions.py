"""Masked reductions, against loops in Python."""

import math

import pytest
import torch

from prefopt.ops.reductions import masked_mean, masked_sum


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 3)])
def test_sums_and_means_see_only_what_the_mask_shows(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(shape, generator=generator) < 0.5
    mask[0] = False
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = values.masked_fill(~mask, float("nan"))

    sums, means = masked_sum(values, mask), masked_mean(values, mask)

    for g in range(7):
        shown = [v.item() for v, m in zip(values[g].flatten(), mask[g].flatten(), strict=True) if m]
        assert sums[g].item() == pytest.approx(math.fsum(shown), abs=1e-12)
        expected = math.fsum(shown) / len(shown) if shown else 0.0
        assert means[g].item() == pytest.approx(expected, abs=1e-12)


def test_what_is_hidden_gets_no_gradient_even_if_it_is_infinite():
    values = torch.tensor([[2.0, float("inf")], [float("nan"), 1.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, False]])

    masked_mean(values, mask).sum().backward()

    assert values.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]
