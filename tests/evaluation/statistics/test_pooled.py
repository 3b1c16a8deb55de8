import numpy as np
import pytest

from prefopt.evaluation.statistics.crossed import Part, Spread, crossed_spread
from prefopt.evaluation.statistics.multiplicity import simultaneous_level
from prefopt.evaluation.statistics.pooled import pooled_spreads


def spread(of_seeds, df=2.0):
    return Spread((Part(0.01, 79.0), Part(of_seeds, df)))


def test_the_less_stable_keeps_its_own_variance_and_the_others_have_the_mean():
    sides = [frozenset({"a"}), frozenset({"b"}), frozenset({"c"})]

    first, second, third = pooled_spreads([spread(0.001), spread(0.002), spread(0.006)], sides)

    # A fixed baseline: three independent estimates of 2 degrees of freedom each.
    variances = [each.parts[1].variance for each in (first, second, third)]
    assert variances == pytest.approx([0.003, 0.003, 0.006])
    assert first.parts[1].df == pytest.approx(6)
    assert first.parts[0] == Part(0.01, 79.0)


def test_those_that_share_a_baseline_tell_less():
    sides = [frozenset({"base", name}) for name in "abcd"]

    pooled = pooled_spreads([spread(0.001)] * 4, sides)

    # rho is 1/2: 2 * 16 / (4 + 12 / 4).
    assert pooled[0].parts[1].df == pytest.approx(32 / 7)


def test_a_whole_matrix_has_the_degrees_of_freedom_of_its_methods():
    names = "abcdefgh"
    sides = [frozenset({x, y}) for i, x in enumerate(names) for y in names[i + 1 :]]

    pooled = pooled_spreads([spread(0.001)] * 28, sides)

    # Of 8 methods with 2 each, all but one are free: (8 - 1) * 2.
    assert pooled[0].parts[1].df == pytest.approx(14)


def test_one_comparison_and_one_seed_are_as_they_were():
    alone = Spread((Part(0.01, 79.0),))

    assert pooled_spreads([spread(0.004)], [frozenset({"a", "b"})]) == [spread(0.004)]
    assert pooled_spreads([alone, spread(0.004)], [frozenset(), frozenset({"a"})]) == [
        alone,
        spread(0.004),
    ]


def test_one_side_with_seeds_is_not_pooled_with_two():
    sides = [frozenset({"a"}), frozenset({"a", "b"})]

    assert pooled_spreads([spread(0.001), spread(0.003)], sides) == [spread(0.001), spread(0.003)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_seeds", "unstable"), [(0.0, 1.0), (0.02, 1.0), (0.05, 4.0), (0.1, 1.0)]
)
def test_holm_keeps_its_error_over_seeds(of_seeds, unstable):
    rng = np.random.default_rng(0)
    sd = np.full(5, of_seeds)
    sd[1] *= unstable
    num_wrong, num_worlds = 0, 600
    for _ in range(num_worlds):
        quality = (
            0.15 * rng.standard_normal((5, 1, 80))
            + sd[:, None, None] * rng.standard_normal((5, 3, 1))
            + 0.2 * rng.standard_normal((5, 3, 80))
        )
        tables = quality[1:] - quality[0]
        sides = [frozenset({"base", name}) for name in "abcd"]
        spreads = pooled_spreads([crossed_spread(each) for each in tables], sides)
        # Holm rejects anything at all if the least p is below the level over the number of tests.
        num_wrong += any(
            abs(table.mean()) > each.half_width(simultaneous_level(4))
            for each, table in zip(spreads, tables, strict=True)
        )

    # Two standard errors of a share of 5 % over 600 worlds are 1.8 points.
    assert num_wrong / num_worlds <= 0.068
