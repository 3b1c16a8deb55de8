"""Pairs are counted as the paper counts them, against arithmetic by hand and loops in Python."""

import math
from dataclasses import replace

import pytest
import torch

from prefopt.diagnostics.ranking import HeldOut, kl_of_samples, loss_to_flip, ranking_metrics

TERCILES = ("chosen_shorter", "similar", "chosen_longer")
NAN, INF = float("nan"), float("inf")


def double(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def held_out(policy, **fields) -> HeldOut:
    """Of (chosen, rejected) log-probs; one token each and no more known, unless it is given."""
    policy = double(policy)
    given = {
        "start_logps": None,
        "reference_logps": None,
        "num_tokens": torch.ones_like(policy, dtype=torch.int64),
        "scores": double([[1, 0]] * len(policy)),
        "where": torch.ones_like(policy, dtype=torch.bool),
        "rewards": None,
    }
    for name, value in fields.items():
        dtype = {"num_tokens": torch.int64, "where": torch.bool}.get(name, torch.float64)
        given[name] = torch.tensor(value, dtype=dtype)
    return HeldOut(policy_logps=policy, **given)


def random_groups(seed: int, num_groups: int = 60, num_slots: int = 4) -> HeldOut:
    """Groups of 0 to 4 responses with tied scores and log-probs; absurd where no response is."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_groups, num_slots)
    where = torch.rand(shape, generator=generator) < 0.7
    absurd = double([NAN, INF, -INF, 1e300]).expand(shape)

    def integers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).double()

    def masked(values: torch.Tensor) -> torch.Tensor:
        return torch.where(where, values, absurd)

    return HeldOut(
        policy_logps=masked(integers(-9, 0)),
        start_logps=masked(integers(-9, 0)),
        reference_logps=masked(integers(-9, 0)),
        num_tokens=torch.where(where, integers(1, 9), 0).long(),
        scores=masked(integers(0, 3)),
        where=where,
        rewards=masked(torch.randn(shape, generator=generator, dtype=torch.float64) * 2),
    )


def brute_force(x: HeldOut, beta: float, agreement: float) -> dict[str, tuple[float, int]]:
    """The same numbers, pair by pair."""
    values: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        values.setdefault(name, []).append(float(value))

    bins: dict[int, list[float]] = {}
    of_length = []
    for g in range(x.where.shape[0]):
        there = [k for k in range(x.where.shape[1]) if x.where[g, k]]
        for w in there:
            for lose in there:
                if not x.scores[g, w] > x.scores[g, lose]:
                    continue
                pw, pl = x.policy_logps[g, w].item(), x.policy_logps[g, lose].item()
                sw, sl = x.start_logps[g, w].item(), x.start_logps[g, lose].item()
                rw, rl = x.reference_logps[g, w].item(), x.reference_logps[g, lose].item()
                nw, nl = x.num_tokens[g, w].item(), x.num_tokens[g, lose].item()
                reward = x.rewards[g, w].item() - x.rewards[g, lose].item()
                ideal = math.exp(rw - rl) * (agreement / (1 - agreement)) ** (1 / beta)
                add("ranking_accuracy", pw >= pl)
                add("ranking_accuracy/per_token", pw / nw >= pl / nl)
                add("ranking_accuracy/reference", rw >= rl)
                add("ranking_accuracy/reference_per_token", rw / nw >= rl / nl)
                add("implicit_reward_accuracy", pw - rw > pl - rl)
                add("objective_accuracy", reward > 0)
                add("idealised_ranking_accuracy", ideal > 1)
                add("ranking_gap", (ideal > 1) - (pw >= pl))
                add("flips/gained", rw < rl and pw >= pl)
                add("flips/lost", rw >= rl and pw < pl)
                if rw < rl:
                    add("flips/share_of_wrong_gained", pw >= pl)
                add("difficulty/mean", beta * (rl - rw))
                add("difficulty/share_hard", rl > rw)
                add("drift/chosen", pw - sw)
                add("drift/rejected", pl - sl)
                add("drift/chosen_per_token", (pw - sw) / nw)
                add("drift/rejected_per_token", (pl - sl) / nl)
                add("drift/share_both_fall", pw < sw and pl < sl)
                add("drift/share_both_rise", pw > sw and pl > sl)
                add("drift/share_ideal", pw > sw and pl < sl)
                add("length/chosen", nw)
                add("length/rejected", nl)
                add("length/gap", nw - nl)
                of_length.append((nw - nl, pw - rw > pl - rl))
                p = 1 / (1 + math.exp(-reward))
                add("calibration/brier", (1 - p) ** 2)
                add("calibration/nll", -math.log(p))
                confidence = max(p, 1 - p)
                bins.setdefault(int((confidence - 0.5) / 0.05), []).append(confidence - (p > 0.5))
    num_pairs = len(of_length)
    of_length.sort()
    lower = of_length[math.ceil(num_pairs / 3) - 1][0]
    upper = of_length[math.ceil(2 * num_pairs / 3) - 1][0]
    for gap, is_right in of_length:
        name = "similar" if lower < gap <= upper else "chosen_longer"
        add(f"accuracy_by_length/{'chosen_shorter' if gap <= lower else name}", is_right)
    expected = {name: (sum(each) / len(each), len(each)) for name, each in values.items()}
    error = sum(abs(sum(each)) for each in bins.values()) / num_pairs
    return expected | {"calibration/error": (error, num_pairs)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("beta", "agreement"), [(0.1, 0.999), (2.0, 0.8), (5.0, 0.3)])
def test_every_number_is_that_of_a_loop_over_all_pairs(seed, beta, agreement):
    groups = random_groups(seed)

    found = ranking_metrics(groups, beta=beta, agreement=agreement)

    expected = brute_force(groups, beta, agreement)
    assert found.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert found[name] == (pytest.approx(value, abs=1e-12), count), name


def test_a_list_counts_with_all_its_pairs():
    # Scores 3 > 2 > 1, so pairs (0, 1), (0, 2), (1, 2); log-probs -2, -1, -3 put the first wrong.
    one = held_out([[-2, -1, -3]], scores=[[3, 2, 1]])

    assert ranking_metrics(one)["ranking_accuracy"] == (pytest.approx(2 / 3), 3)


def test_length_can_turn_a_ranking():
    # -6 < -4, but -6 / 3 = -2 >= -4 / 1 = -4.
    one = held_out([[-6, -4]], num_tokens=[[3, 1]])

    metrics = ranking_metrics(one)

    assert metrics["ranking_accuracy"] == (0, 1)
    assert metrics["ranking_accuracy/per_token"] == (1, 1)


def test_a_tie_is_right_in_a_ranking_and_wrong_in_rewards():
    same = [[-5, -5]]

    metrics = ranking_metrics(held_out(same, reference_logps=same, rewards=[[0, 0]]))

    assert metrics["ranking_accuracy"] == (1, 1)
    assert metrics["ranking_accuracy/reference"] == (1, 1)
    assert metrics["difficulty/share_hard"] == (0, 1)
    assert metrics["implicit_reward_accuracy"] == (0, 1)
    assert metrics["objective_accuracy"] == (0, 1)


def test_what_nothing_defines_is_left_out():
    known = {"ranking_accuracy", "ranking_accuracy/per_token"}
    known |= {"length/chosen", "length/rejected", "length/gap"}

    # One pair has no terciles; there is no start, no reference and no reward.
    assert ranking_metrics(held_out([[-1, -2]]), beta=0.1).keys() == known


def test_no_pair_that_the_reference_ranks_wrong_means_no_share_of_them():
    metrics = ranking_metrics(held_out([[-1, -2]], reference_logps=[[-1, -2]]))

    assert "flips/share_of_wrong_gained" not in metrics
    assert metrics["flips/gained"] == (0, 1)


def test_the_closed_form_of_dpo_is_left_out_without_beta():
    groups = random_groups(0)

    gone = ranking_metrics(groups, beta=0.1).keys() - ranking_metrics(groups).keys()

    assert gone == {"idealised_ranking_accuracy", "ranking_gap", "difficulty/mean"}


@pytest.mark.parametrize(
    ("scores", "where"),
    [
        ([[1, NAN], [2, INF]], [[True, False], [True, False]]),
        ([[1, 1], [0, 0]], [[True, True], [True, True]]),
        ([[1], [0]], [[True], [True]]),
    ],
    ids=["alone", "tied", "labels"],
)
def test_a_group_without_a_preference_has_no_pairs(scores, where):
    logps = torch.zeros(len(scores), len(scores[0])).tolist()
    known = {"reference_logps": logps, "start_logps": logps, "rewards": logps}

    assert ranking_metrics(held_out(logps, scores=scores, where=where, **known), beta=0.1) == {}


def test_unused_slots_change_nothing():
    groups = random_groups(1)

    def zeroed(values: torch.Tensor) -> torch.Tensor:
        return values.masked_fill(~groups.where, 0)

    clean = replace(
        groups,
        policy_logps=zeroed(groups.policy_logps),
        start_logps=zeroed(groups.start_logps),
        reference_logps=zeroed(groups.reference_logps),
        scores=zeroed(groups.scores),
        rewards=zeroed(groups.rewards),
    )
    assert ranking_metrics(groups, beta=0.1) == ranking_metrics(clean, beta=0.1)


def test_flips_are_what_separates_policy_and_reference():
    metrics = ranking_metrics(random_groups(2))
    value = {name: value for name, (value, _) in metrics.items()}

    # right now = right before + gained - lost
    gained = value["ranking_accuracy"] - value["ranking_accuracy/reference"]
    assert value["flips/gained"] - value["flips/lost"] == pytest.approx(gained)
    assert metrics["flips/share_of_wrong_gained"][1] == round(
        value["difficulty/share_hard"] * metrics["flips/gained"][1]
    )


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_a_pair_is_ranked_right_exactly_if_its_loss_is_low_enough(beta):
    generator = torch.Generator().manual_seed(5)
    margin, reference_margin = torch.randn(2, 5000, generator=generator, dtype=torch.float64) * 10

    loss = -torch.nn.functional.logsigmoid(beta * (margin - reference_margin))

    assert torch.equal(loss <= loss_to_flip(reference_margin, beta), margin >= 0)


def test_a_reference_without_opinion_needs_ln_2():
    # -log sigmoid(-0.5 * margin) at margins 0 and -4: ln 2 and log(1 + e^-2)
    needed = loss_to_flip(double([0.0, -4.0]), 0.5)

    assert needed.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(-2))])


@pytest.mark.parametrize(("beta", "agreement"), [(0.1, 0.6), (1.0, 0.9), (5.0, 0.999)])
def test_the_optimum_of_dpo_attains_the_idealised_accuracy(beta, agreement):
    logits = torch.randn(400, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    reference = (3 * logits).log_softmax(dim=1)
    # pi* is ref exp(r / beta) / Z, where sigmoid(r_w - r_l) is the agreement.
    rewards = double([math.log(agreement), math.log(1 - agreement)])
    policy = (reference + rewards / beta).log_softmax(dim=1)
    groups = held_out(policy.tolist(), reference_logps=reference.tolist())

    metrics = ranking_metrics(groups, beta=beta, agreement=agreement)

    assert metrics["idealised_ranking_accuracy"] == metrics["ranking_accuracy"]
    assert metrics["ranking_gap"] == (0, 400)
    assert metrics["ranking_accuracy/reference"] < metrics["ranking_accuracy"]


def test_the_idealised_policy_outweighs_a_small_error_only():
    # ln(0.75 / 0.25) / 0.5 = 2.197 turns a margin of -2 and leaves one of -3.
    groups = held_out([[-2, -2], [-2, -1]], reference_logps=[[-4, -2], [-4, -1]])

    metrics = ranking_metrics(groups, beta=0.5, agreement=0.75)

    assert metrics["idealised_ranking_accuracy"] == (0.5, 2)
    assert metrics["ranking_gap"] == (0, 2)
    # 0.5 * (2 + 3) / 2
    assert metrics["difficulty/mean"] == (1.25, 2)


def test_drift_is_told_apart_by_its_signs():
    start = [[-5, -5]] * 4
    # Both fall, both rise, ideal, and chosen unmoved: none of the three.
    now = [[-6, -9], [-4, -3], [-4, -7], [-5, -9]]

    metrics = ranking_metrics(held_out(now, start_logps=start, num_tokens=[[2, 4]] * 4))

    assert metrics["drift/chosen"] == ((-1 + 1 + 1 + 0) / 4, 4)
    assert metrics["drift/rejected"] == ((-4 + 2 - 2 - 4) / 4, 4)
    assert metrics["drift/chosen_per_token"] == ((-1 + 1 + 1 + 0) / 4 / 2, 4)
    assert metrics["drift/rejected_per_token"] == ((-4 + 2 - 2 - 4) / 4 / 4, 4)
    shares = [metrics[f"drift/share_{name}"] for name in ("both_fall", "both_rise", "ideal")]
    assert shares == [(0.25, 4)] * 3


def test_terciles_of_the_length_gap_take_their_ties():
    # Gaps -2, -2, 1, 3, 3: the bounds are the 2nd and the 4th of them.
    num_tokens = [[1, 3], [2, 4], [3, 2], [5, 2], [6, 3]]
    policy = [[-1, -2], [-2, -1], [-1, -2], [-1, -2], [-2, -1]]

    metrics = ranking_metrics(held_out(policy, num_tokens=num_tokens))

    assert metrics["length/gap"] == ((-2 - 2 + 1 + 3 + 3) / 5, 5)
    assert metrics["accuracy_by_length/chosen_shorter"] == (0.5, 2)
    assert metrics["accuracy_by_length/similar"] == (pytest.approx(2 / 3), 3)
    assert "accuracy_by_length/chosen_longer" not in metrics


@pytest.mark.parametrize(
    ("num_pairs", "sizes"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [2, 2, 1]), (6, [2, 2, 2])]
)
def test_terciles_without_ties_are_as_equal_as_can_be(num_pairs, sizes):
    groups = held_out([[-1, -2]] * num_pairs, num_tokens=[[9 - n, 1] for n in range(num_pairs)])

    metrics = ranking_metrics(groups)

    assert [metrics[f"accuracy_by_length/{name}"][1] for name in TERCILES] == sizes


def test_length_is_set_against_the_implicit_reward_where_the_reference_is_known():
    # All policies are right; against the reference the second one is wrong.
    policy = [[-1, -2]] * 3
    reference = [[-2, -2], [-1, -3], [-2, -2]]
    groups = held_out(policy, reference_logps=reference, num_tokens=[[1, 2], [2, 2], [2, 1]])

    metrics = ranking_metrics(groups)

    by_length = [metrics[f"accuracy_by_length/{name}"] for name in TERCILES]
    assert by_length == [(1, 1), (0, 1), (1, 1)]


def test_calibration_by_hand():
    # p of the chosen one is 0.8, 0.8 and 0.2: confidence 0.8 throughout, right 2 of 3 times.
    margin = math.log(0.8 / 0.2)
    rewards = [[margin, 0], [0, -margin], [0, margin]]

    metrics = ranking_metrics(held_out([[-1, -2]] * 3, rewards=rewards))

    assert metrics["calibration/brier"][0] == pytest.approx((0.2**2 + 0.2**2 + 0.8**2) / 3)
    assert metrics["calibration/nll"][0] == pytest.approx(-(2 * math.log(0.8) + math.log(0.2)) / 3)
    assert metrics["calibration/error"] == (pytest.approx(0.8 - 2 / 3), 3)


def test_not_knowing_is_calibrated_and_being_sure_and_wrong_is_not():
    def error(reward: float) -> float:
        return ranking_metrics(held_out([[-1, -2]], rewards=[[reward, 0]]))["calibration/error"][0]

    # Confidence 0.5 and half right; 1 and right; 1 and wrong.
    assert [error(0), error(1e3), error(-1e3)] == [0, 0, 1]


def test_a_hopeless_reward_costs_its_margin_and_no_more():
    metrics = ranking_metrics(held_out([[-1, -2]], rewards=[[-1e4, 0]]))

    assert metrics["calibration/nll"] == (1e4, 1)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [({"beta": 0.0}, "above 0, or None"), ({"agreement": 1.0}, "such as 0.999 for 1")],
)
def test_an_option_out_of_range_says_what_to_give(options, way_out):
    with pytest.raises(ValueError, match=way_out):
        ranking_metrics(random_groups(0), **options)


def test_the_kl_of_samples_is_their_mean_log_ratio():
    # Log-ratios 1, 3 and 2: mean 2, variance (1 + 1 + 0) / 2 = 1.
    mean, standard_error = kl_of_samples(double([-1, -1, -1]), double([-2, -4, -3]))

    assert (mean, standard_error) == (2, pytest.approx(1 / math.sqrt(3)))


def test_the_kl_of_samples_finds_the_kl():
    generator = torch.Generator().manual_seed(4)
    policy, reference = torch.randn(2, 8, generator=generator, dtype=torch.float64).log_softmax(1)
    drawn = torch.multinomial(policy.exp(), 20000, replacement=True, generator=generator)

    mean, standard_error = kl_of_samples(policy[drawn], reference[drawn])

    exact = (policy.exp() * (policy - reference)).sum().item()
    assert abs(mean - exact) < 4 * standard_error < 0.1 * exact


def test_one_sample_has_no_standard_error():
    with pytest.raises(ValueError, match="at least 2"):
        kl_of_samples(double([-1]), double([-2]))
