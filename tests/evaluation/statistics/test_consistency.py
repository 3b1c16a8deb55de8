import numpy as np
import pytest

from prefopt.evaluation.statistics.consistency import (
    conflicts,
    consistent_share,
    first_slot_rate,
    intransitive_shares,
    verdicts,
)


def test_a_verdict_is_what_is_likeliest():
    probs = np.array(
        [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.4, 0.3, 0.4], [0.45, 0.45, 0.1]]
    )

    assert verdicts(probs).tolist() == [1, -1, 0, 0, 0]


def test_a_judge_that_always_takes_the_first_is_consistent_with_nothing():
    forward = backward = np.array([1, 1, 1, 1])
    prompts = np.array([0, 0, 1, 2])

    share = consistent_share(forward, backward, prompts)
    rate = first_slot_rate(np.ones(8), prompts.repeat(2))

    assert share["value"] == 0.0
    assert rate["value"] == 1.0
    assert share["n"] == rate["n"] == 3


def test_the_same_verdict_changes_its_slot():
    forward, backward = np.array([1, -1, 0, 1]), np.array([-1, 1, 0, 0])

    # The last says first, then tie: not the same.
    assert consistent_share(forward, backward, np.arange(4))["value"] == 0.75


def tensor(*prompts):
    """Of 3 methods: win of a over b, b over c and c over a on each prompt."""
    wins = np.full((3, 3, len(prompts)), np.nan)
    for index, (ab, bc, ca) in enumerate(prompts):
        for (i, j), win in {(0, 1): ab, (1, 2): bc, (2, 0): ca}.items():
            wins[i, j, index], wins[j, i, index] = win, 1 - win
    return wins


def test_a_circle_is_three_wins_in_a_round():
    shares = intransitive_shares(
        tensor((0.9, 0.6, 0.7), (0.1, 0.4, 0.3), (0.9, 0.6, 0.3), (0.9, 0.6, 0.5), (0.9, np.nan, 1))
    )

    np.testing.assert_array_equal(shares, [1, 1, 0, 0, np.nan])


def test_of_four_methods_four_triples_count():
    # a > b > c > a, and all beat d: 1 circle of 4 triples.
    wins = np.full((4, 4, 1), np.nan)
    for winner, loser in [(0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)]:
        wins[winner, loser], wins[loser, winner] = 0.8, 0.2

    assert intransitive_shares(wins) == pytest.approx([0.25])


def test_a_conflict_is_better_by_pair_and_worse_by_score():
    wins = np.array([0.8, 0.8, 0.2, 0.5, 0.8, 0.2])
    differences = np.array([-1.0, 1.0, 0.5, 1.0, 0.0, -2.0])

    assert conflicts(wins, differences).tolist() == [True, False, True, False, False, False]
