import evalica
import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit

from prefopt.evaluation.statistics.battles import Battles, NotEstimableError
from prefopt.evaluation.statistics.strengths import LENGTH, SLOT, design_of, fit_strengths
from tests.support.battles import battles_from, simulated

FIVE = {"base": 0.0, "a": 0.2, "b": 0.5, "c": -0.3, "d": 0.9}


def test_two_systems_have_the_log_odds_of_their_wins():
    battles = battles_from([("a", "b", 0.8), ("a", "b", 0.6), ("b", "a", 0.3), ("b", "a", 0.3)])

    fitted = fit_strengths(battles, "b")

    # a wins 0.7 shown first and 0.7 shown second: no slot effect, log-odds of 0.7.
    assert fitted.logit("a")["value"] == pytest.approx(logit(0.7))
    assert fitted.win_against_baseline("a")["value"] == pytest.approx(0.7)
    assert fitted.effect(SLOT)["value"] == pytest.approx(0.0, abs=1e-9)
    assert fitted.logit("b") == {
        "value": 0.0,
        "low": None,
        "high": None,
        "n": 4,
        "unit": "prompts, one seed",
    }


def test_standing_first_is_an_effect_of_its_own():
    battles = battles_from([("a", "b", 0.9), ("b", "a", 0.6), ("a", "b", 0.9), ("b", "a", 0.6)])

    fitted = fit_strengths(battles, "b")

    # Log-odds of a shown first: strength + slot; of b shown first: slot - strength.
    assert fitted.effect(SLOT)["value"] == pytest.approx((logit(0.9) + logit(0.6)) / 2)
    assert fitted.logit("a")["value"] == pytest.approx((logit(0.9) - logit(0.6)) / 2)


def test_without_covariates_strengths_are_evalicas():
    rng = np.random.default_rng(0)
    battles = simulated(rng, FIVE, 100, by_prompt=1.0, is_soft=True)

    fitted = fit_strengths(battles, "base", covariates=())

    # A soft win is a won battle with its weight and a lost one with the rest.
    names = np.array(battles.names)
    xs, ys = names[battles.first], names[battles.second]
    result = evalica.bradley_terry(
        np.tile(xs, 2).tolist(),
        np.tile(ys, 2).tolist(),
        [evalica.Winner.X] * len(xs) + [evalica.Winner.Y] * len(xs),
        weights=np.concatenate([battles.win, 1 - battles.win]).tolist(),
        tolerance=1e-12,
        limit=10_000,
    )
    expected = np.log(result.scores / result.scores["base"])
    for name in FIVE:
        assert fitted.logit(name)["value"] == pytest.approx(expected[name], abs=1e-3)


def test_all_effects_are_recovered():
    rng = np.random.default_rng(1)
    battles = simulated(
        rng, FIVE, 2000, length_effect=0.9, slot_effect=0.35, longer={"a": 300, "d": -200}
    )

    fitted = fit_strengths(battles, "base")

    for name, strength in FIVE.items():
        assert fitted.logit(name)["value"] == pytest.approx(strength, abs=0.08)
    assert fitted.effect(LENGTH)["value"] == pytest.approx(0.9, abs=0.06)
    assert fitted.effect(SLOT)["value"] == pytest.approx(0.35, abs=0.03)
    assert fitted.left_out == {}


def test_the_covariance_is_statsmodels_cluster_sandwich():
    battles = simulated(np.random.default_rng(2), FIVE, 60, by_prompt=1.0, length_effect=0.5)

    fitted = fit_strengths(battles, "base")

    _, design, _ = design_of(battles, "base", (LENGTH, SLOT))
    model = sm.GLM(battles.win, design, family=sm.families.Binomial())
    result = model.fit(cov_type="cluster", cov_kwds={"groups": battles.prompt})
    # statsmodels corrects for few clusters by G / (G - 1) and for columns by (N - 1) / (N - K).
    num_rows, num_columns = design.shape
    expected = result.cov_params() * (num_rows - num_columns) / (num_rows - 1)
    np.testing.assert_allclose(fitted.coefficients, result.params, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fitted.covariance(), expected, rtol=1e-5, atol=1e-9)


def test_an_interval_is_near_that_of_a_bootstrap_over_prompts():
    rng = np.random.default_rng(3)
    battles = simulated(rng, {"base": 0.0, "a": 0.4, "b": 0.1}, 120, by_prompt=1.0)
    fitted = fit_strengths(battles, "base")
    by_prompt = [np.flatnonzero(battles.prompt == prompt) for prompt in range(120)]

    strengths = []
    for _ in range(200):
        rows = np.concatenate([by_prompt[prompt] for prompt in rng.integers(120, size=120)])
        resample = Battles(
            names=battles.names,
            first=battles.first[rows],
            second=battles.second[rows],
            win=battles.win[rows],
            length_difference=battles.length_difference[rows],
            prompt=battles.prompt[rows],
            seed=battles.seed[rows],
        )
        strengths.append(fit_strengths(resample, "base").logit("a")["value"])

    # The standard error of a standard deviation of 200 draws is 5 %.
    _, spread = fitted.contrast("a", "base")
    assert spread.standard_error == pytest.approx(np.std(strengths), rel=0.15)


def test_equal_lengths_leave_the_length_out_and_say_so():
    battles = battles_from([("a", "b", 0.8), ("b", "a", 0.3), ("a", "b", 0.5)])

    fitted = fit_strengths(battles, "b")

    assert fitted.effect(LENGTH) is None
    assert "lengths differ on no prompt" in fitted.left_out[LENGTH]
    assert fitted.columns == ("a", SLOT)


def test_one_order_only_leaves_the_slot_out_and_says_so():
    rng = np.random.default_rng(0)
    rows = [("a", "b", rng.random()) for _ in range(20)]

    fitted = fit_strengths(battles_from(rows, lengths=rng.normal(size=20)), "b")

    assert "no pair was shown in both orders" in fitted.left_out[SLOT]
    assert fitted.effect(LENGTH) is not None


def test_a_slot_that_decides_everything_is_refused():
    battles = battles_from([("a", "b", 1.0), ("b", "a", 1.0)] * 10)

    with pytest.raises(NotEstimableError, match="length or slot decide every battle"):
        fit_strengths(battles, "b")


def test_a_length_that_decides_everything_is_refused():
    lengths = np.random.default_rng(0).normal(size=40)
    rows = [("a", "b", length > 0) for length in lengths]
    rows += [("b", "a", length < 0) for length in lengths]

    with pytest.raises(NotEstimableError, match="length or slot decide every battle"):
        fit_strengths(battles_from(rows, lengths=[*lengths, *-lengths]), "b")


def test_one_prompt_tells_no_strengths():
    battles = battles_from([("a", "b", 0.6), ("b", "a", 0.6)], prompts=[0, 0])

    with pytest.raises(NotEstimableError, match="at least 2 prompts"):
        fit_strengths(battles, "b")


def test_ranks_say_what_could_be():
    strengths = {"base": 0.0, "close": 0.02, "best": 1.5, "worst": -1.5}
    battles = simulated(np.random.default_rng(5), strengths, 300, by_prompt=0.5)

    ranks = fit_strengths(battles, "base").ranks()

    assert (ranks["best"].rank, ranks["best"].low, ranks["best"].high) == (1, 1, 1)
    assert (ranks["worst"].rank, ranks["worst"].low, ranks["worst"].high) == (4, 4, 4)
    assert {ranks["base"].rank, ranks["close"].rank} == {2, 3}
    assert (ranks["base"].low, ranks["base"].high) == (2, 3)


def test_equals_share_a_rank():
    battles = battles_from([("a", "b", 0.6), ("b", "a", 0.6)] * 5)

    ranks = fit_strengths(battles, "b").ranks()

    assert {(rank.low, rank.high) for rank in ranks.values()} == {(1, 2)}


def test_seeds_that_differ_widen_the_interval():
    strengths = {"base": 0.0, "a": 0.3}
    same = simulated(np.random.default_rng(4), strengths, 100, num_seeds=3)
    different = simulated(np.random.default_rng(4), strengths, 100, num_seeds=3, by_seed=0.8)

    narrow, wide = (fit_strengths(each, "base").logit("a") for each in (same, different))

    assert wide["unit"] == "prompts, 3 seeds"
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])


def test_what_belongs_to_no_seed_counts_for_all_alike():
    battles = simulated(np.random.default_rng(7), {"base": 0.0, "a": 0.3}, 50)
    alone = fit_strengths(battles, "base")
    tripled = Battles(
        names=battles.names,
        first=battles.first,
        second=battles.second,
        win=battles.win,
        length_difference=battles.length_difference,
        prompt=battles.prompt,
        seed=np.full(len(battles), -1),
    )

    assert fit_strengths(tripled, "base").logit("a") == alone.logit("a")


@pytest.mark.slow
@pytest.mark.parametrize("by_seed", [0.0, 0.15, 0.5])
def test_intervals_of_strengths_cover_new_seeds_and_prompts(by_seed):
    rng = np.random.default_rng(8)
    # The strength on the marginal scale, which is what the model estimates: of a world so large
    # that nothing is left to chance.
    draws = 0.4 + np.sqrt(2 * (1.0 + by_seed**2)) * rng.standard_normal(4_000_000)
    truth = logit(expit(draws).mean())
    num_covered = 0
    for _ in range(1000):
        battles = simulated(
            rng, {"base": 0.0, "a": 0.4}, 80, by_prompt=1.0, num_seeds=3, by_seed=by_seed
        )
        estimate = fit_strengths(battles, "base").logit("a")
        num_covered += estimate["low"] <= truth <= estimate["high"]

    # Two standard errors of a coverage over 1000 worlds are 1.4 points.
    assert 0.93 - 0.014 <= num_covered / 1000 <= 0.97 + 0.014
