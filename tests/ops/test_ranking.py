"""Gaps between discounts of ranks, against loops over every order of tied values."""

import math
from itertools import permutations

import pytest
import torch

from prefopt.ops.ranking import discount_gaps


def mean_over_orders(values: list[float]) -> list[list[float]]:
    """The mean of |1/log(1 + rank_i) - 1/log(1 + rank_j)| over all sorted orders of the values."""
    size = range(len(values))
    orders = [
        order
        for order in permutations(size)
        if all(values[order[p]] >= values[order[p + 1]] for p in size[:-1])
    ]
    sums = [[0.0 for _ in size] for _ in size]
    for order in orders:
        discount = {i: 1 / math.log(1 + rank) for rank, i in enumerate(order, start=1)}
        for i in size:
            for j in size:
                sums[i][j] += abs(discount[i] - discount[j])
    return [[total / len(orders) for total in row] for row in sums]


@pytest.mark.parametrize(
    "values",
    [
        [0.3],
        [1.0, 2.0],
        [-3.0, 5.0, 0.5, 1.0],
        [0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [2.0, 1.0, 2.0, 1.0, 1.0, 0.0],
        [1.0, 3.0, 3.0, 3.0, -1.0, -1.0],
    ],
)
def test_a_gap_is_the_mean_over_all_orders_of_tied_values(values: list[float]):
    gaps = discount_gaps(
        torch.tensor([values], dtype=torch.float64), torch.ones(1, len(values), dtype=torch.bool)
    )

    expected = torch.tensor([mean_over_orders(values)], dtype=torch.float64)
    torch.testing.assert_close(gaps, expected, rtol=1e-12, atol=1e-12)


def test_the_first_of_two_is_discounted_by_log_2_and_the_second_by_log_3():
    gaps = discount_gaps(torch.tensor([[7.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool))

    assert gaps[0, 0, 1].item() == pytest.approx(1 / math.log(2) - 1 / math.log(3), rel=1e-6)
    assert gaps[0, 1, 0] == gaps[0, 0, 1]


def test_unused_slots_hold_no_rank():
    values = torch.tensor([[float("inf"), 7.0, float("nan"), 2.0, 99.0]])
    where = torch.tensor([[False, True, False, True, False]])

    gaps = discount_gaps(values, where)

    assert gaps[0, 1, 3].item() == pytest.approx(1 / math.log(2) - 1 / math.log(3), rel=1e-6)
    assert torch.isfinite(gaps).all()
