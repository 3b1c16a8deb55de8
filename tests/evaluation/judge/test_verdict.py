import math

import pytest

from prefopt.evaluation.judge.verdict import (
    label_position,
    label_probs,
    last_label,
    last_rating,
    last_verdict,
    on_levels,
)

ABC = ("A", "B", "C")


def top(**probs):
    return [{"token": token, "logprob": math.log(prob)} for token, prob in probs.items()]


def test_the_last_verdict_counts_and_not_one_that_is_quoted_before():
    assert last_verdict("I thought of [[A]] first, but [[B]] is right. [[B]]", ABC) == 1
    assert last_verdict("Not [[B]]. So: [[A]]", ABC) == 0
    assert last_verdict("They are the same: [[ C ]]", ABC) == 2


def test_words_without_double_brackets_are_no_verdict():
    assert last_verdict("A is better than B [A]", ABC) is None
    assert last_verdict("[[D]] [[AB]] [[]]", ABC) is None


def test_labels_differ_by_case():
    assert last_label("m", ("m", "M")) == 0
    assert last_label(" M.", ("m", "M")) == 1
    assert last_label("Mm", ("m", "M")) is None


def test_a_citation_is_no_rating():
    assert last_rating("As source [1] says, it is fine.") is None
    assert last_rating("See [1] and [2]. Rating: [[7]]") == 7.0


def test_the_last_rating_counts():
    assert last_rating("On [[1]] to [[10]] I say [[8.5]]") == 8.5
    assert last_rating("[[A]] [[-3]]") is None


def test_a_rating_lies_on_a_level_or_between_two_with_its_mean_kept():
    levels = (1.0, 2.0, 4.0)

    assert on_levels(1.0, levels) == (1.0, 0.0, 0.0)
    assert on_levels(4.0, levels) == (0.0, 0.0, 1.0)
    # 3.5 is three quarters of the way from 2 to 4.
    assert on_levels(3.5, levels) == (0.0, 0.25, 0.75)


@pytest.mark.parametrize("value", [0.0, 10.5, 11.0])
def test_a_rating_outside_the_levels_is_none(value):
    assert on_levels(value, tuple(map(float, range(1, 11)))) is None


def test_variants_of_a_label_are_summed():
    found = label_probs(top(**{"A": 0.3, " A": 0.2, "B": 0.1, "Hm": 0.3}), ("A", "B"))

    # 0.5 : 0.1, of 0.6 in all.
    assert found.mass == pytest.approx(0.6)
    assert found.probs == pytest.approx((5 / 6, 1 / 6))


def test_a_label_outside_the_top_counts_as_zero_and_shows_in_the_mass():
    found = label_probs(top(A=0.7, x=0.2), ("A", "B"))

    assert found.probs == (1.0, 0.0)
    assert found.mass == pytest.approx(0.7)


def test_no_label_among_the_tokens_gives_no_probabilities():
    found = label_probs(top(a=0.5, b=0.5), ("A", "B"))

    assert found.probs is None
    assert found.mass == 0.0


def test_a_token_that_is_listed_twice_counts_once():
    found = label_probs(top(A=0.6) + top(A=0.6, B=0.2), ("A", "B"))

    assert found.mass == pytest.approx(0.8)


def test_log_probs_far_below_zero_do_not_vanish_among_themselves():
    found = label_probs(
        [{"token": "A", "logprob": -700.0}, {"token": " A", "logprob": -700.0}], ("A", "B")
    )

    assert found.probs == (1.0, 0.0)
    assert found.mass == pytest.approx(2 * math.exp(-700), rel=1e-9)


def test_of_a_bare_reply_the_last_label_is_read_and_else_the_first_token():
    assert label_position(["\n", "A", "."], ABC, is_bare=True) == 1
    assert label_position(["A", " or", " B"], ABC, is_bare=True) == 2
    assert label_position(["Both"], ABC, is_bare=True) == 0
    assert label_position([], ABC, is_bare=True) is None


def test_after_a_reason_the_label_in_the_last_brackets_is_read():
    tokens = ["Not", " [[", "A", "]]", " but", " [[", "B", "]]", " A"]
    assert label_position(tokens, ABC, is_bare=False) == 6
    assert label_position(["So", " [[B", "]]"], ABC, is_bare=False) == 1
    assert label_position(["A", " is", " better"], ABC, is_bare=False) is None


def test_a_label_that_the_tokenizer_splits_is_not_read_by_its_first_half():
    assert label_position(["[[", "1", "0", "]]"], ("1", "10"), is_bare=False) is None
    assert label_position(["[[", "10", "]]"], ("1", "10"), is_bare=False) == 1
