"""Numbers of held-out pairs, against loops over pairs and the numbers of training's diagnostics."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prefopt.diagnostics.ranking import HeldOut, ranking_metrics
from prefopt.evaluation.held_out import pair_numbers


def double(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def pairs_of(policy, reference=None, *, num_tokens=None, rewards=None, start=None) -> HeldOut:
    """Groups of (chosen, rejected) log-probs, one token each unless it is given."""
    policy = double(policy)
    return HeldOut(
        policy_logps=policy,
        start_logps=None if start is None else double(start),
        reference_logps=None if reference is None else double(reference),
        num_tokens=torch.tensor(num_tokens) if num_tokens else torch.ones(policy.shape).long(),
        scores=double([[1, 0]]).expand(policy.shape),
        where=torch.ones(policy.shape, dtype=torch.bool),
        rewards=None if rewards is None else double(rewards),
    )


def drawn(seed: int, num_groups: int = 80, num_slots: int = 3) -> HeldOut:
    """Lists whose log-probs have no ties."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(num_groups, num_slots, generator=generator, dtype=torch.float64)

    reference = normal(3.0) - 20
    policy = reference + normal(1.0)
    return HeldOut(
        policy_logps=policy,
        start_logps=reference,
        reference_logps=reference,
        num_tokens=torch.randint(1, 30, (num_groups, num_slots), generator=generator),
        scores=normal(1.0),
        where=torch.rand(num_groups, num_slots, generator=generator) < 0.8,
        rewards=0.3 * (policy - reference),
    )


def value(numbers, name: str) -> float:
    return numbers[name]["value"]


def test_without_ties_the_numbers_are_those_of_the_diagnostics():
    groups = drawn(0)

    found = pair_numbers(groups, beta=0.3)

    for name, (mean, num) in ranking_metrics(groups, beta=0.3).items():
        assert (value(found, name), found[name]["n"]) == (pytest.approx(mean), num), name
        assert found[name]["unit"] == "pairs"


def test_every_number_but_one_has_an_interval_around_it():
    found = pair_numbers(drawn(1, num_groups=200))

    for name, each in found.items():
        if name == "calibration/error":
            assert (each["low"], each["high"]) == (None, None)
        else:
            assert each["low"] <= each["value"] <= each["high"], name
            assert each["low"] < each["high"], name


def test_a_tie_is_half_right_whatever_ranks():
    same = [[-5, -5], [-3, -4]]
    groups = pairs_of(same, same, rewards=[[0, 0], [0, 0]])

    found = pair_numbers(groups)

    # Log-probs: one tie and one right; log-ratios and rewards: two ties.
    assert value(found, "ranking_accuracy") == value(found, "ranking_accuracy/reference") == 0.75
    assert value(found, "implicit_reward_accuracy") == value(found, "objective_accuracy") == 0.5
    assert value(found, "margin_auc/implicit_reward") == 0.5


def test_the_objective_may_rank_otherwise_than_the_log_ratio():
    # SimPO's reward is per token: -6 / 3 > -3 / 1, while -6 - -4 < -3 - -4.
    groups = pairs_of([[-6, -3]], [[-4, -4]], num_tokens=[[3, 1]], rewards=[[-2, -3]])

    found = pair_numbers(groups)

    assert value(found, "implicit_reward_accuracy") == value(found, "ranking_accuracy") == 0
    assert value(found, "objective_accuracy") == value(found, "ranking_accuracy/per_token") == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_that_of_a_loop_over_pairs_of_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    margins = torch.randint(-4, 7, (40,), generator=generator).tolist()
    groups = pairs_of([[margin, 0] for margin in margins])

    wins = [(a > -b) + (a == -b) / 2 for a in margins for b in margins]

    assert value(pair_numbers(groups), "margin_auc/policy") == pytest.approx(np.mean(wins))


def test_the_interval_of_the_area_is_that_of_drawing_pairs_anew():
    generator = np.random.default_rng(0)
    margins = generator.normal(0.4, 1.0, 150)

    def area(some: np.ndarray) -> float:
        return float((some[:, None] > -some[None, :]).mean())

    found = pair_numbers(pairs_of([[margin, 0] for margin in margins]))["margin_auc/policy"]

    again = [area(generator.choice(margins, len(margins))) for _ in range(2000)]
    low, high = np.quantile(again, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.02)


def test_accuracy_is_told_by_whether_the_chosen_one_is_longer():
    num_tokens = [[3, 1], [2, 1], [1, 2], [4, 4]]
    groups = pairs_of([[-1, -2], [-2, -1], [-1, -2], [-2, -1]], num_tokens=num_tokens)

    found = pair_numbers(groups)

    longer = found["accuracy_by_length/chosen_is_longer"]
    other = found["accuracy_by_length/chosen_is_not_longer"]
    assert [(each["value"], each["n"]) for each in (longer, other)] == [(0.5, 2), (0.5, 2)]


def test_subsets_weigh_alike_in_their_mean():
    # maths: 1 of 1 right; chat: 1 of 3.
    groups = pairs_of([[-1, -2], [-1, -2], [-2, -1], [-2, -1]])

    found = pair_numbers(groups, subsets=["maths", "chat", "chat", "chat"])

    assert value(found, "accuracy_by_subset/maths") == 1
    assert value(found, "accuracy_by_subset/chat") == pytest.approx(1 / 3)
    assert found["accuracy_by_subset/chat"]["n"] == 3
    assert value(found, "accuracy_by_subset/mean") == pytest.approx((1 + 1 / 3) / 2)
    assert value(found, "ranking_accuracy") == 0.5


def test_the_mean_over_subsets_is_as_certain_as_its_smallest_one_allows():
    generator = np.random.default_rng(0)
    right = generator.random(400) < 0.7
    subsets = ["few" if number < 20 else "many" for number in range(400)]
    groups = pairs_of([[1.0, 0.0] if each else [0.0, 1.0] for each in right])

    found = pair_numbers(groups, subsets=subsets)["accuracy_by_subset/mean"]

    # Variance of (p1 + p2) / 2 with p (1 - p) / n each.
    spread = 0.5 * np.sqrt(0.7 * 0.3 / 20 + 0.7 * 0.3 / 380)
    assert (found["high"] - found["low"]) == pytest.approx(2 * 1.96 * spread, rel=0.25)


def test_groups_of_one_prompt_are_drawn_together():
    groups = drawn(2, num_groups=60)
    copies = HeldOut(
        **{
            name: None if (each := getattr(groups, name)) is None else each.repeat(8, 1)
            for name in HeldOut.__slots__
        }
    )
    prompts = [str(number) for number in range(60)] * 8

    once = pair_numbers(groups)["implicit_reward_accuracy"]
    apart = pair_numbers(copies)["implicit_reward_accuracy"]
    together = pair_numbers(copies, clusters=prompts)["implicit_reward_accuracy"]

    # Copies say nothing new; as groups of their own they seem to.
    width = once["high"] - once["low"]
    assert together["high"] - together["low"] == pytest.approx(width, rel=0.1)
    assert apart["high"] - apart["low"] < 0.5 * width


def test_what_nothing_defines_is_left_out():
    found = pair_numbers(pairs_of([[-1, -2]]))

    assert set(found) == {
        "ranking_accuracy",
        "ranking_accuracy/per_token",
        "length/chosen",
        "length/rejected",
        "length/gap",
        "margin_auc/policy",
        "accuracy_by_length/chosen_is_not_longer",
    }


def test_groups_without_a_preference_have_no_numbers():
    groups = replace(pairs_of([[-1, -2]]), scores=double([[1, 1]]))

    assert pair_numbers(groups) == {}


def test_displacement_is_a_share_of_pairs_whose_two_log_probs_fell():
    groups = pairs_of([[-6, -9], [-4, -7]], start=[[-5, -5], [-5, -5]])

    found = pair_numbers(groups)

    assert value(found, "drift/share_both_fall") == 0.5
    # (-1 + 1) / 2 and (-4 - 2) / 2
    assert (value(found, "drift/chosen"), value(found, "drift/rejected")) == (0, -3)
