"""Numbers are written with their intervals, as exactly as they are known."""

import pytest

from prefopt.evaluation.report import words
from tests.support.bare_report import estimate

MINUS = "\u2212"


def test_a_share_is_written_in_per_cent_with_one_decimal():
    assert words.whole(estimate(0.6234, 0.581, 0.66), "share") == (
        "62.3 % [58.1, 66.0] (n = 100 prompts)"
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "written"),
    [
        # Widths of 0.04, 2.1, 390 and 4e-6 have two digits that count at 3, 1, 0 and 7 decimals.
        (0.61349, 0.5934, 0.6334, "0.613 [0.593, 0.633]"),
        (12.34, 11.3, 13.4, "12.3 [11.3, 13.4]"),
        (-1234.5, -1430, -1040, f"{MINUS}1\u202f234 [{MINUS}1\u202f430, {MINUS}1\u202f040]"),
        (1e-5, 8e-6, 1.2e-5, "0.0000100 [0.0000080, 0.0000120]"),
        (0.75, 0.75, 0.75, "0.750 [0.750, 0.750]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (-0.001, -1.0, 1.0, f"0.0 [{MINUS}1.0, 1.0]"),
        (0.1234, None, None, "0.123 [no interval]"),
    ],
)
def test_decimals_follow_the_width_of_the_interval(value, low, high, written):
    each = estimate(value, low, high)
    assert f"{words.value(each)} {words.interval(each)}" == written


def test_one_is_not_in_the_plural():
    assert words.over(estimate(0, 0, 0, n=1, unit="seeds")) == "n = 1 seed"
    assert words.over(estimate(0, 0, 0, n=1234, unit="pairs")) == "n = 1,234 pairs"


def test_p_values_do_not_pretend_to_be_nought():
    assert [words.p_value(p) for p in (1e-9, 0.0123, 0.256, 1.0)] == [
        "< 0.001",
        "0.012",
        "0.26",
        "1.00",
    ]
    assert [words.p_is(p) for p in (1e-9, 0.0123)] == ["< 0.001", "= 0.012"]


def test_what_all_numbers_of_a_sentence_are_over_is_said_once():
    same, other = [estimate(0.5, 0.4, 0.6)] * 2, [estimate(0.5, 0.4, 0.6, n=7)]
    counted = words.Counted(same)
    assert counted.number(same[0]) == "50.0 % [40.0, 60.0]"
    assert counted.end == " (n = 100 prompts each)"
    mixed = words.Counted(same + other)
    assert mixed.number(other[0]) == "50.0 % [40.0, 60.0] (n = 7 prompts)"
    assert mixed.end == ""


def test_names_are_listed_as_people_do():
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b"]) == "a and b"
    assert words.listed(["a", "b", "c"], "or") == "a, b or c"


def test_settings_are_written_short():
    assert words.settings({"beta": 0.1, "learning_rate": 1e-6, "steps": 300}) == (
        "beta 0.1, learning_rate 1e-06, steps 300"
    )


def test_ticks_have_the_unit_of_their_axis():
    assert [words.tick(0.2, "share"), words.tick(-0.5), words.tick(0.1 + 0.2)] == [
        "20 %",
        f"{MINUS}0.5",
        "0.3",
    ]
