import numpy as np
import pytest
from scipy import stats

from prefopt.evaluation.statistics.crossed import Part, Spread, crossed_spread


def test_one_seed_varies_with_prompts_only():
    values = np.array([[0.2, 0.4, 0.9, 0.5]])

    spread = crossed_spread(values)

    [part] = spread.parts
    # The textbook variance of a mean: sum of squares 0.26 over 3, over 4 prompts.
    assert part.variance == pytest.approx(0.26 / 3 / 4)
    assert part.df == 3
    sem = stats.sem(values[0])
    assert spread.standard_error == pytest.approx(sem)
    assert spread.half_width() == pytest.approx(sem * stats.t.ppf(0.975, 3))


def test_seeds_add_their_variance_less_what_is_due_to_the_rest():
    # Seed effects -0.3, 0, 0.3; prompt effects -0.1, 0.1; rest +-e in a pattern that sums to 0.
    e = 0.01
    table = np.array([[-0.4 + e, -0.2 - e], [-0.1, 0.1], [0.2 - e, 0.4 + e]])

    of_prompts, of_seeds = crossed_spread(table).parts

    assert of_prompts.variance == pytest.approx(0.02 / 2)
    # Mean square of the rest 4 e^2 / 2, over 6 cells; of seed means 0.09, over 3 seeds.
    assert of_seeds.variance == pytest.approx(0.09 / 3 - 4 * e**2 / 2 / 6)
    assert (of_prompts.df, of_seeds.df) == (1, 2)


def test_of_two_seeds_nothing_is_taken_off():
    e = 0.01
    table = np.array([[-0.4 + e, -0.2 - e], [0.2 - e, 0.4 + e]])

    assert crossed_spread(table).parts[1].variance == pytest.approx(0.18 / 2)


def test_seeds_that_agree_add_nothing():
    table = np.array([[0.1, 0.6, 0.8], [0.2, 0.7, 0.6], [0.3, 0.5, 0.7]])

    assert table.mean(axis=1) == pytest.approx([0.5, 0.5, 0.5])
    assert crossed_spread(table).parts[1].variance == 0


def test_p_is_that_of_a_t_test_where_one_part_is_all():
    values = np.random.default_rng(0).normal(0.52, 0.1, size=30)

    p = crossed_spread(values[None]).p(values.mean() - 0.5)

    assert p == pytest.approx(stats.ttest_1samp(values, 0.5).pvalue, rel=1e-6)


def test_p_meets_the_interval():
    spread = Spread((Part(0.01, 99.0), Part(0.02, 2.0)))

    assert spread.p(spread.half_width(0.95)) == pytest.approx(0.05)
    assert spread.p(-spread.half_width(0.8)) == pytest.approx(0.2)
    assert spread.p(0.0) == 1.0


def test_where_nothing_varies_all_but_the_null_is_ruled_out():
    spread = crossed_spread(np.full((1, 5), 0.7))

    assert spread.half_width() == 0
    assert spread.p(0.2) == 0.0
    assert spread.p(0.0) == 1.0
    assert spread.df == np.inf


def test_degrees_of_freedom_are_satterthwaites():
    # (1 + 2)^2 / (1/4 + 4/2) = 4
    assert Spread((Part(1.0, 4.0), Part(2.0, 2.0))).df == pytest.approx(4)
