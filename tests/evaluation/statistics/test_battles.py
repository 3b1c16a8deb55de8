import numpy as np
import pytest

from prefopt.evaluation.statistics.battles import (
    NotEstimableError,
    check_comparable,
    comparable,
    is_told_apart,
)
from tests.support.battles import battles_from


def test_a_win_each_way_makes_comparable():
    # a and b beat each other; c beats d only, and is never met by a or b.
    battles = battles_from([("a", "b", 0.7), ("b", "a", 0.4), ("c", "d", 0.5)])

    assert comparable(battles, "a") == ("a", "b")
    with pytest.raises(NotEstimableError, match="No finite strength for c: wins do not lead"):
        check_comparable(battles, "a")


@pytest.mark.parametrize(("win", "why"), [(1.0, "it wins every"), (0.0, "it loses every")])
def test_who_always_wins_or_loses_is_named(win, why):
    battles = battles_from([("a", "b", 0.7), ("c", "a", win), ("c", "b", win)])

    with pytest.raises(NotEstimableError, match=f"No finite strength for c: {why} comparison"):
        check_comparable(battles, "a")
    assert comparable(battles, "b") == ("a", "b")


def test_a_circle_of_sure_wins_is_comparable():
    battles = battles_from([("a", "b", 1.0), ("b", "c", 1.0), ("c", "a", 1.0)])

    check_comparable(battles, "a")
    one_way = battles_from([("a", "b", 1.0), ("b", "c", 1.0), ("a", "c", 1.0)])
    assert comparable(one_way, "b") == ("b",)


def test_who_was_never_compared_is_named():
    battles = battles_from([("a", "b", 0.5)], names=("a", "b", "lonely"))

    with pytest.raises(NotEstimableError, match="for lonely: it was compared with nothing"):
        check_comparable(battles, "a")


def test_battles_among_some_keep_their_sides():
    battles = battles_from([("a", "b", 0.7), ("b", "c", 0.2), ("c", "b", 0.9)])

    among = battles.among(("c", "b"))

    assert among.names == ("c", "b")
    assert among.first.tolist() == [1, 0]
    assert among.second.tolist() == [0, 1]
    assert among.win.tolist() == [0.2, 0.9]


def test_a_column_is_told_apart_if_the_others_do_not_make_it_up():
    others = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

    assert not is_told_apart(others @ [2.0, -3.0], others)
    assert is_told_apart(np.array([1.0, 1.0, 0.0]), others)
    assert not is_told_apart(np.zeros(3), others)
    assert is_told_apart(np.ones(3), others[:, :0])
