"""Soft labels, log softmax over used slots, and when labels are called hard."""

import math

import pytest
import torch

from prefopt.ops.soft_labels import masked_log_softmax, soft_labels, warning_of_hard_labels


def scored(*lists: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and mask of ragged lists; 50 in unused slots."""
    size = max(map(len, lists))
    scores = [[*one, *[50.0] * (size - len(one))] for one in lists]
    where = [[k < len(one) for k in range(size)] for one in lists]
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(where)


def test_log_softmax_is_over_used_slots_and_0_elsewhere():
    values, where = scored([0.0, math.log(3)], [7.0], [])

    result = masked_log_softmax(values, where)

    # 1 and 3 of 4; all of 1; nothing
    expected = [[math.log(1 / 4), math.log(3 / 4)], [0.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_log_softmax_has_a_gradient_in_groups_without_responses():
    values, where = scored([1.0, 2.0], [])
    values = values.fill_(math.nan).masked_fill(where, 1.0).requires_grad_()

    masked_log_softmax(values, where)[:, 0].sum().backward()

    # d log softmax_0 = 1 - 1/2 and -1/2
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, -0.5], [0.0, 0.0]]


def test_a_score_higher_by_alpha_has_e_times_the_label():
    labels = soft_labels(*scored([8.0, 6.0, 6.0]), alpha=2.0)

    total = math.e + 2
    assert labels.tolist()[0] == pytest.approx([math.e / total, 1 / total, 1 / total], rel=1e-12)


def test_without_alpha_those_that_share_the_top_share_the_label():
    labels = soft_labels(*scored([8.5, 8.5, 8.0], [1.0, 0.0], [3.0], []), alpha=None)

    assert labels.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("alpha", [1e-4, 2.0, None])
def test_labels_of_a_group_add_up_to_1(alpha: float | None):
    scores, where = scored([8.5, 8.5, 8.0, 3.0], [1e4, -1e4], [2.0], [])

    labels = soft_labels(scores, where, alpha)

    assert labels.sum(dim=1).tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0])
    assert (labels[~where] == 0).all()


def test_a_small_alpha_is_warned_of_with_an_example():
    said = warning_of_hard_labels(*scored([4.0, 4.0], [8.5, 8.0, 3.0], [2.0, 1.0]), alpha=0.05)

    # exp(-0.5 / 0.05) = exp(-10) is below 0.001; the tied group is left out
    assert said is not None
    assert said.startswith("alpha = 0.05 is small beside the differences of the scores: in 2 of 2 ")
    assert "scores (8.5, 8, 3) with labels (1.000, 0.000, 0.000)" in said
    assert said.endswith("Raise alpha, or bring the scores to [0, 1] with data.scores: minmax.")
    assert "\n" not in said


def test_labels_that_only_share_the_top_are_hard_too():
    said = warning_of_hard_labels(*scored([8.5, 8.5, 8.0, 3.0]), alpha=1e-4)

    assert said is not None
    assert "labels (0.500, 0.500, 0.000, 0.000)" in said


@pytest.mark.parametrize(
    ("lists", "alpha"),
    [
        ([[8.5, 8.0, 3.0]], 0.5),
        # One hard group of two is not most.
        ([[9.0, 1.0], [5.0, 4.5]], 0.5),
        ([[4.0, 4.0], [2.0]], 1e-4),
        ([[], []], 1e-4),
    ],
)
def test_nothing_is_said_unless_most_labels_are_hard(lists: list[list[float]], alpha: float):
    scores, where = scored(*lists) if any(lists) else (torch.zeros(2, 2), torch.zeros(2, 2).bool())

    assert warning_of_hard_labels(scores, where, alpha) is None
