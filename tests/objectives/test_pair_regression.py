"""Pair regression against its equation, worked out by hand, with every kind of target."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient
from tests.objectives.pair_loops import Response, assert_is_the_mean_over_pairs, mean_over_pairs

CASES = [
    {"name": "pair_regression"},
    {"name": "pair_regression", "scale": 0.1, "target": 2.5},
    {"name": "pair_regression", "scale": 0.5, "target": "win_prob", "clip": 0.2},
    {"name": "pair_regression", "scale": 2.0, "target": "scores"},
]

TARGETS = "should be 'scores', 'win_prob' or a number above 0"


def target_of(objective: Objective, w: Response, r: Response) -> float:
    """The number that the scaled difference of log-ratios should be."""
    target, clip = (objective.model_dump()[key] for key in ("target", "clip"))
    if target == "scores":
        return w.score - r.score
    if target == "win_prob":
        p = min(w.score / (w.score + r.score), 1 - clip)
        return math.log(p / (1 - p))
    return float(target)


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """All differences are 0, so that the square of the target is left."""
    return mean_over_pairs(inputs, lambda w, r: target_of(objective, w, r) ** 2)


def test_a_pair_costs_the_square_of_what_is_missing_to_the_gap_of_the_scores():
    objective = build({"name": "pair_regression", "scale": 0.5})
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[7.0, 3.0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # 0.5 * (2 + 1) - (7 - 3) = -2.5, slope 2 * 0.5 * -2.5
    assert losses.tolist() == [6.25]
    assert gradient.tolist() == [[-2.5, 2.5]]
    assert objective(inputs).rewards.tolist() == [[1.0, -0.5]]


def test_a_share_of_wins_has_its_logit_as_target():
    objective = build({"name": "pair_regression", "target": "win_prob", "clip": 0.01})
    inputs = inputs_of([[1.0, 0.0]], [[0.0, 0.0]], [[0.8, 0.2]])

    # 1 - log(0.8 / 0.2)
    assert objective(inputs).losses.item() == pytest.approx((1 - math.log(4)) ** 2, rel=1e-12)


def test_shares_of_a_pair_need_not_add_up_to_1():
    objective = build({"name": "pair_regression", "target": "win_prob", "clip": 0.01})
    inputs = inputs_of([[1.0, 0.0]], [[0.0, 0.0]], [[0.6, 0.2]])

    # p = 0.6 / 0.8, p / (1 - p) = 3
    assert objective(inputs).losses.item() == pytest.approx((1 - math.log(3)) ** 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sure_win_is_clipped(dtype: torch.dtype):
    objective = build({"name": "pair_regression", "target": "win_prob", "clip": 0.1})
    inputs = inputs_of([[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]], dtype=dtype)

    losses, gradient = losses_and_gradient(objective, inputs)

    # p = 0.9, p / (1 - p) = 9
    assert losses.item() == pytest.approx((1 - math.log(9)) ** 2, rel=1e-5)
    assert gradient.tolist()[0] == pytest.approx([2 * (1 - math.log(9)), -2 * (1 - math.log(9))])


def test_responses_that_never_win_are_no_pair_and_leave_no_trace():
    objective = build({"name": "pair_regression", "target": "win_prob", "clip": 0.1})
    inputs = inputs_of([[1.0, 2.0, 5.0]], [[0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # 0 beats 1 by -1 and 2 by -4
    expected = ((-1 - math.log(9)) ** 2 + (-4 - math.log(9)) ** 2) / 2
    assert losses.item() == pytest.approx(expected, rel=1e-12)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("tau", [0.1, 0.4])
def test_with_scale_1_and_half_of_1_over_tau_it_is_ipo_on_sums(tau: float):
    section = {"name": "pair_regression", "scale": 1.0, "target": 1 / (2 * tau)}
    ipo = build({"name": "ipo", "tau": tau, "length_normalized": False})
    inputs = draw(ipo).inputs

    losses_of_ipo = losses_and_gradient(ipo, inputs)

    torch.testing.assert_close(
        losses_and_gradient(build(section), inputs), losses_of_ipo, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("section", CASES)
@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 8, 16])
def test_lists_cost_the_mean_over_their_preferred_pairs(num_slots: int, section: dict[str, object]):
    objective = build(section)
    scale = section.get("scale", 1.0)

    def off(w: Response, r: Response) -> float:
        return scale * (w.log_ratio - r.log_ratio) - target_of(objective, w, r)

    def slopes(w: Response, r: Response) -> tuple[float, float]:
        return 2 * scale * off(w, r), -2 * scale * off(w, r)

    assert_is_the_mean_over_pairs(objective, num_slots, lambda w, r: off(w, r) ** 2, slopes)


@pytest.mark.parametrize("absurd", [float("nan"), float("inf"), -float("inf")])
def test_scores_of_unused_slots_leave_no_trace(absurd: float):
    objective = build({"name": "pair_regression", "target": "win_prob", "clip": 0.1})
    policy, reference = [[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]
    where = [[True, True, False]]
    absurd_scores = inputs_of(policy, reference, [[0.9, 0.3, absurd]], where=where)
    inputs = inputs_of(policy, reference, [[0.9, 0.3, 0.0]], where=where)

    found, expected = (losses_and_gradient(objective, each) for each in (absurd_scores, inputs))

    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.isfinite(found[1]).all()


def test_traits_follow_from_the_target():
    scores = build({"name": "pair_regression"})
    number = build({"name": "pair_regression", "target": 5})
    win_prob = build({"name": "pair_regression", "target": "win_prob", "clip": 0.01})

    assert (scores.needs, scores.score_range) == ("graded", None)
    assert (number.needs, number.score_range) == ("preferred_pairs", None)
    assert (win_prob.needs, win_prob.score_range) == ("graded", (0.0, 1.0))


def test_10000_nats_cost_their_square():
    objective = build({"name": "pair_regression", "target": 1})
    policy, reference = [[-1e4, 0.0], [1e4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(policy, reference, [[1, 0], [1, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert losses.tolist() == pytest.approx([10001.0**2, 9999.0**2], rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([-20002.0, 20002.0], rel=1e-6)
    assert gradient.tolist()[1] == pytest.approx([19998.0, -19998.0], rel=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"scale": 0}, r"^objective\.scale should be greater than 0, got 0\.$"),
        ({"target": 0}, rf"^objective\.target {TARGETS}, got 0\.$"),
        ({"target": "logit"}, rf"^objective\.target {TARGETS}, got 'logit'\.$"),
        ({"target": True}, rf"^objective\.target {TARGETS}, got True\.$"),
        ({"target": float("inf")}, rf"^objective\.target {TARGETS}, got inf\.$"),
        ({"target": "win_prob"}, r"^objective\.clip should be a number such as 0\.01.*, got None"),
        ({"target": "win_prob", "clip": 0.5}, r"^objective\.clip should be less than 0\.5, got"),
        ({"clip": 0.1}, r"^objective\.clip should be left out.* reads it, got 0\.1\.$"),
        ({"target": 3.0, "clip": 0.1}, r"^objective\.clip should be left out.*, got 0\.1\.$"),
    ],
)
def test_wrong_values_are_refused(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "pair_regression", **section})


def test_a_number_that_yaml_reads_as_text_is_a_number():
    section = {"name": "pair_regression", "target": "5e-1"}

    assert build(section) == build({**section, "target": 0.5})
