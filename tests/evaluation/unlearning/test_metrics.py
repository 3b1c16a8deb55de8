"""TOFU's numbers, against arithmetic, plain loops, scipy and rouge-score."""

import math
import random

import pytest
from scipy import stats

from prefopt.evaluation.unlearning import metrics

LN = math.log


def test_the_truth_ratio_is_of_geometric_means():
    # Wrong answers of probability 0.2 and 0.05 a token: sqrt(0.01) = 0.1; the correct one 0.4.
    ratio = metrics.log_truth_ratio(-LN(0.4), [-LN(0.2), -LN(0.05)])

    assert metrics.truth_ratio(ratio) == pytest.approx(0.1 / 0.4)
    assert metrics.forgotten(ratio) == pytest.approx(0.25)
    assert metrics.kept(ratio) == pytest.approx(0.75)


def test_what_is_forgotten_is_symmetric_and_what_is_kept_is_not():
    # Wrong answers four times as likely as the correct one.
    assert metrics.forgotten(LN(4)) == pytest.approx(0.25)
    assert metrics.kept(LN(4)) == 0
    assert (metrics.forgotten(0.0), metrics.kept(0.0)) == (1, 0)


def test_a_collapsed_model_has_a_ratio_though_its_probabilities_underflow():
    # exp(-1000) is 0 in floats; 1e-10 in the denominator would make the ratio 0.
    ratio = metrics.log_truth_ratio(1000.0, [1000.0, 1000.0])

    assert metrics.probability(1000.0) == 0
    assert metrics.truth_ratio(ratio) == metrics.forgotten(ratio) == 1
    assert metrics.normalised_probability(1000.0, [1000.0] * 3) == pytest.approx(1 / 4)


def test_ratios_too_large_for_floats_stay_finite():
    assert math.isfinite(metrics.truth_ratio(5000.0))
    assert metrics.normalised_probability(5000.0, [0.0]) == pytest.approx(0)


def test_a_normalised_probability_is_a_share_of_all_answers():
    # 0.5 / (0.5 + 0.2 + 0.3)
    found = metrics.normalised_probability(-LN(0.5), [-LN(0.2), -LN(0.3)])

    assert found == pytest.approx(0.5)


def strength_by_loop(hits: list[bool]) -> float:
    """The smallest prefix after which all is hit, by trying each; the last is the floor."""
    hits = hits[:-1]
    for k in range(len(hits)):
        if all(hits[k:]):
            break
    return 1 - k / len(hits)


@pytest.mark.parametrize("seed", range(5))
def test_extraction_strength_is_that_of_trying_each_prefix(seed):
    generator = random.Random(seed)
    for _ in range(200):
        hits = [generator.random() < 0.8 for _ in range(generator.randint(2, 12))]
        assert metrics.extraction_strength(hits) == pytest.approx(strength_by_loop(hits))


@pytest.mark.parametrize(
    ("hits", "strength", "memorised"),
    [
        ([True, True, True, True, False], 1, 1),
        ([True, False, True, True, False], 1 - 2 / 4, 3 / 4),
        # Not even the last token is hit: the floor of 1 / 4, whatever the end is.
        ([False, False, False, False, True], 1 / 4, 0),
        ([False, True], 1, 0),
    ],
)
def test_the_end_of_an_answer_counts_for_neither(hits, strength, memorised):
    assert metrics.extraction_strength(hits) == pytest.approx(strength)
    assert metrics.exact_memorisation(hits) == pytest.approx(memorised)


def test_rouge_stems_words_and_counts_their_longest_common_subsequence():
    # Stemmed: "the author wrote poem" and "poem the author wrote": 3 of 4 words in order.
    found = metrics.rouge("The author wrote poems.", "Poem: the author wrote")

    assert found == {
        "rouge1_recall": 1.0,
        "rougeL_recall": pytest.approx(3 / 4),
        "rougeL_f1": pytest.approx(3 / 4),
    }
    assert metrics.rouge("The author wrote poems.", "")["rougeL_recall"] == 0


def test_forget_quality_is_the_p_of_the_ks_test_as_open_unlearning_takes_it():
    generator = random.Random(0)
    ratios = [generator.lognormvariate(0, 1) for _ in range(60)]
    retained = [generator.lognormvariate(0.5, 1) for _ in range(60)]

    found = metrics.forget_quality(ratios, retained)

    inverse = stats.ks_2samp(
        [1 / (each + 1e-10) for each in ratios], [1 / (each + 1e-10) for each in retained]
    )
    assert found == pytest.approx(inverse.pvalue)
    assert 0 < found < 0.5
    assert metrics.forget_quality(ratios, ratios) == 1


def test_a_test_whose_exact_p_is_rounded_above_1_says_1():
    assert metrics.forget_quality([1.0, 2.0, 3.0, 4.0, 5.0], [1.5, 2.5, 3.5, 4.5, 5.5]) == 1


def test_utility_is_a_harmonic_mean_that_one_zero_takes_to_zero():
    # 3 / (1 + 2 + 4)
    assert metrics.model_utility([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert metrics.model_utility([1.0, 0.0, 0.25]) == 0
