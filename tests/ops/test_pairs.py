"""Pairs of responses, against loops in Python."""

import torch

from prefopt.ops.pairs import (
    best_response,
    pairwise_differences,
    preferred_pairs,
    preferred_responses,
)


def random_groups(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with many ties, absurd where no response is, and groups of 0 to 4 responses."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 2, (40, 4), generator=generator).double()
    where = torch.rand(40, 4, generator=generator) < 0.6
    absurd = torch.tensor([99.0, float("nan"), float("inf"), -99.0], dtype=torch.float64)
    return torch.where(where, scores, absurd), where


def test_differences_are_row_minus_column():
    values = torch.tensor([[1.0, 4.0, 9.0]])

    differences = pairwise_differences(values)

    # [i, j] = values_i - values_j
    assert differences.tolist() == [[[0, -3, -8], [3, 0, -5], [8, 5, 0]]]


def test_a_pair_is_preferred_if_both_are_there_and_the_first_scores_higher():
    scores, where = random_groups(0)

    pairs = preferred_pairs(scores, where)

    for g in range(40):
        for i in range(4):
            for j in range(4):
                both = bool(where[g, i] and where[g, j])
                assert pairs[g, i, j] == (both and bool(scores[g, i] > scores[g, j]))


def test_the_best_are_all_that_nobody_beats():
    scores, where = random_groups(1)

    best = best_response(scores, where)

    for g in range(40):
        there = [k for k in range(4) if where[g, k]]
        top = max((scores[g, k].item() for k in there), default=None)
        expected = [k in there and scores[g, k].item() == top for k in range(4)]
        assert best[g].tolist() == expected


def test_the_preferred_beat_another_one_or_0_if_there_is_none():
    scores, where = random_groups(2)

    preferred = preferred_responses(scores, where)

    for g in range(40):
        there = [k for k in range(4) if where[g, k]]
        for k in range(4):
            others = [scores[g, j].item() for j in there if j != k] or [0.0]
            assert preferred[g, k] == (k in there and scores[g, k].item() > min(others))
