from collections import Counter

import pytest

from prefopt.data.select import select, transform_scores
from prefopt.types import PreferenceRecord

SCORES = (0.2, 0.8, 0.5, 0.8)


def record(scores=SCORES, record_id="r:1"):
    responses = tuple(f"answer {k}" for k in range(len(scores)))
    return PreferenceRecord(id=record_id, prompt="p", responses=responses, scores=scores)


def kept(keep, *, top_k=None, seed=0, record_id="r:1", scores=SCORES):
    chosen = select(record(scores, record_id), scores="raw", keep=keep, top_k=top_k, seed=seed)
    return [int(response.split()[1]) for response in chosen.responses]


def test_minmax_maps_the_worst_to_zero_and_the_best_to_one():
    # (0.5 - 0.2) / (0.8 - 0.2) = 0.5
    assert transform_scores(SCORES, "minmax") == pytest.approx((0.0, 1.0, 0.5, 1.0))


def test_rank_counts_the_beaten_with_ties_as_half():
    # 0.8 beats 0.2 and 0.5 and ties with the other 0.8.
    assert transform_scores(SCORES, "rank") == (0.0, 2.5, 1.0, 2.5)


def test_the_rank_of_a_pair_is_one_and_zero():
    assert transform_scores((7.5, 3.0), "rank") == (1.0, 0.0)


@pytest.mark.parametrize("transform", ["raw", "minmax", "rank"])
def test_a_label_of_a_single_response_stays_as_it_is(transform):
    assert transform_scores((0.0,), transform) == (0.0,)
    assert transform_scores((1.0,), transform) == (1.0,)


def test_minmax_of_equal_scores_is_a_half():
    assert transform_scores((3.0, 3.0), "minmax") == (0.5, 0.5)


def test_best_worst_keeps_the_first_best_and_the_worst():
    assert kept("best_worst") == [1, 0]


def test_best_worst_of_all_tied_keeps_two_responses():
    assert kept("best_worst", scores=(1.0, 1.0, 1.0)) == [0, 1]


def test_top_k_keeps_the_best_in_their_own_order():
    assert kept("top_k", top_k=3) == [1, 2, 3]
    assert kept("top_k", top_k=9) == [0, 1, 2, 3]


def test_best_random_draws_every_other_response_about_equally_often():
    others = Counter(kept("best_random", record_id=f"r:{row}")[1] for row in range(600))

    assert set(others) == {0, 2, 3}
    # 600 draws from three: 200 each, standard deviation sqrt(600 * 1/3 * 2/3) = 11.5.
    assert all(abs(count - 200) < 50 for count in others.values())


def test_best_random_depends_on_record_and_seed_alone():
    draws = [kept("best_random", record_id=f"r:{row}", seed=1) for row in range(30)]

    assert draws == [kept("best_random", record_id=f"r:{row}", seed=1) for row in range(30)]
    assert draws != [kept("best_random", record_id=f"r:{row}", seed=2) for row in range(30)]


def test_scores_are_transformed_before_responses_are_left_out():
    chosen = select(record(), scores="rank", keep="best_worst", top_k=None, seed=0)

    assert chosen.scores == (2.5, 0.0)
