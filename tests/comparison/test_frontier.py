import math

import pytest

from prefopt.comparison.frontier import Measured, common_kl, wins_at


def measured(kl: float, *, seed: int = 0, **wins: float) -> Measured:
    return Measured(seed=seed, kl=kl, wins=wins)


def test_methods_meet_at_the_largest_kl_that_all_reach_with_every_seed():
    policies = {
        "a": [measured(4.0), measured(9.0), measured(8.0, seed=1)],
        "b": [measured(2.0), measured(16.0), measured(7.0, seed=1)],
    }

    # a reaches 9 and 8, b reaches 16 and 7.
    assert common_kl(policies) == 7.0


def test_methods_of_which_one_has_not_moved_meet_nowhere():
    assert common_kl({"a": [measured(4.0)], "b": [measured(-0.01)]}) is None
    assert common_kl({}) is None


def test_between_the_start_and_a_policy_wins_are_linear_in_the_root_of_the_kl():
    [wins] = wins_at([measured(9.0, x=0.8, y=0.2)], 4.0)

    # Two thirds of the way from 1/2.
    assert wins == pytest.approx({"x": 0.5 + 0.3 * 2 / 3, "y": 0.5 - 0.3 * 2 / 3})


def test_between_two_policies_it_lies_between_them():
    policies = [measured(1.0, x=0.6), measured(9.0, x=0.8)]

    [wins] = wins_at(policies, 4.0)

    # sqrt: 1, 2, 3.
    assert wins == pytest.approx({"x": 0.7})


def test_at_a_policys_own_kl_it_is_the_policy():
    policies = [measured(1.0, x=0.6), measured(9.0, x=0.8)]

    assert wins_at(policies, 9.0) == [pytest.approx({"x": 0.8})]
    assert wins_at(policies, 1.0) == [pytest.approx({"x": 0.6})]


def test_seeds_are_kept_apart():
    policies = [measured(4.0, x=0.9), measured(16.0, seed=1, x=0.9)]

    first, second = wins_at(policies, 4.0)

    assert first == pytest.approx({"x": 0.9})
    assert second == pytest.approx({"x": 0.5 + 0.4 * math.sqrt(4 / 16)})


def test_a_prompt_that_one_policy_has_no_win_for_is_left_out():
    policies = [measured(1.0, x=0.6), measured(9.0, x=0.8, y=1.0)]

    assert list(wins_at(policies, 4.0)[0]) == ["x"]
