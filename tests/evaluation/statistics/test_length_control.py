import numpy as np
import pytest
from scipy.special import expit

from prefopt.evaluation.statistics.battles import Battles, NotEstimableError
from prefopt.evaluation.statistics.length_control import length_controlled_win
from prefopt.evaluation.statistics.strengths import fit_strengths
from tests.support.battles import battles_from, simulated


def raw_win(battles: Battles) -> float:
    """Of the first name, both orders averaged."""
    return float(np.where(battles.first == 0, battles.win, 1 - battles.win).mean())


def test_a_judge_of_length_moves_the_raw_rate_and_not_this_one():
    rng = np.random.default_rng(0)
    battles = simulated(
        rng, {"wordy": 0.0, "base": 0.0}, 800, length_effect=2.0, longer={"wordy": 300}
    )

    estimate = length_controlled_win(battles, "wordy", "base")

    assert raw_win(battles) > 0.65
    assert estimate["low"] < 0.5 < estimate["high"]
    assert estimate["value"] == pytest.approx(0.5, abs=0.04)
    assert estimate["n"] == 800


def test_what_is_better_at_equal_length_stays_better():
    rng = np.random.default_rng(1)
    battles = simulated(
        rng, {"terse": 0.8, "base": 0.0}, 800, length_effect=2.0, longer={"terse": -300}
    )

    estimate = length_controlled_win(battles, "terse", "base")

    # Its brevity costs it more than its quality brings.
    assert raw_win(battles) < 0.5
    assert estimate["value"] == pytest.approx(expit(0.8), abs=0.05)
    assert estimate["low"] > 0.6


def test_a_against_itself_is_exactly_one_half():
    battles = battles_from([("a", "b", 0.5)] * 20 + [("b", "a", 0.5)] * 20)

    estimate = length_controlled_win(battles, "a", "b")

    assert estimate["value"] == pytest.approx(0.5, abs=1e-12)
    assert estimate["low"] == pytest.approx(0.5, abs=1e-12)
    assert estimate["high"] == pytest.approx(0.5, abs=1e-12)


def test_with_equal_lengths_it_is_the_win_rate():
    rng = np.random.default_rng(2)
    wins = rng.random(60)
    rows = [("a", "b", win) for win in wins] + [("b", "a", 1 - win) for win in wins]
    battles = battles_from(rows, prompts=np.tile(np.arange(60), 2))

    estimate = length_controlled_win(battles, "a", "b")

    assert estimate["value"] == pytest.approx(wins.mean())


def test_resamples_are_fitted_anew():
    battles = simulated(np.random.default_rng(3), {"a": 0.5, "b": 0.0}, 60, length_effect=1.0)
    by_prompt = [np.flatnonzero(battles.prompt == prompt) for prompt in range(60)]
    rng = np.random.default_rng(4)
    wins = []
    for _ in range(250):
        rows = np.concatenate([by_prompt[prompt] for prompt in rng.integers(60, size=60)])
        resample = Battles(
            names=battles.names,
            first=battles.first[rows],
            second=battles.second[rows],
            win=battles.win[rows],
            length_difference=battles.length_difference[rows],
            prompt=battles.prompt[rows],
            seed=battles.seed[rows],
        )
        wins.append(fit_strengths(resample, "b").win_against_baseline("a")["value"])

    estimate = length_controlled_win(battles, "a", "b")

    low, high = np.quantile(wins, [0.025, 0.975])
    assert estimate["low"] == pytest.approx(low, abs=0.15 * (high - low))
    assert estimate["high"] == pytest.approx(high, abs=0.15 * (high - low))
    assert length_controlled_win(battles, "a", "b") == estimate


def test_others_do_not_matter_to_a_pair():
    rng = np.random.default_rng(5)
    three = simulated(rng, {"a": 0.5, "b": 0.0, "c": 1.0}, 40, length_effect=1.0)

    alone = length_controlled_win(three.among(("a", "b")), "a", "b")

    assert length_controlled_win(three, "a", "b") == alone


def test_few_losses_do_not_break_the_bootstrap():
    # Two losses of 30: one resample in eight has none, and no finite strength.
    rows = [("a", "b", 0.0)] * 2 + [("a", "b", 1.0)] * 28

    estimate = length_controlled_win(battles_from(rows), "a", "b")

    assert estimate["value"] == pytest.approx(28 / 30)
    assert estimate["high"] > 0.999
    assert 0.8 < estimate["low"] < 0.9


def test_who_always_wins_has_none():
    with pytest.raises(NotEstimableError, match="No finite strength for a: it wins every"):
        length_controlled_win(battles_from([("a", "b", 1.0)] * 5), "a", "b")


def test_who_was_never_met_has_none():
    battles = battles_from([("a", "b", 0.5), ("b", "c", 0.5)])

    with pytest.raises(NotEstimableError, match="never compared with c"):
        length_controlled_win(battles, "a", "c")


def test_lengths_that_differ_alike_on_all_prompts_have_none():
    wins = np.random.default_rng(6).random(10)
    rows = [("a", "b", win) for win in wins] + [("b", "a", 1 - win) for win in wins]
    battles = battles_from(rows, lengths=[100.0] * 10 + [-100.0] * 10)

    with pytest.raises(NotEstimableError, match="lengths differ on no prompt other than"):
        length_controlled_win(battles, "a", "b")


@pytest.mark.slow
def test_intervals_cover_at_equal_lengths():
    rng = np.random.default_rng(7)
    num_covered = 0
    for _ in range(400):
        battles = simulated(
            rng, {"a": 0.6, "b": 0.0}, 100, length_effect=1.5, longer={"a": 200}, slot_effect=0.3
        )
        estimate = length_controlled_win(battles, "a", "b")
        num_covered += estimate["low"] <= expit(0.6) <= estimate["high"]

    # Two standard errors of a coverage over 400 worlds are 2.2 points.
    assert 0.93 - 0.022 <= num_covered / 400 <= 0.97 + 0.022
