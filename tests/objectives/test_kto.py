"""KTO against its formula, worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient, step_loss

CASES = [
    {"name": "kto"},
    {"name": "kto", "beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.7},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """Without statistics the baseline is 0, so that each response costs half its weight."""
    weights = objective.model_dump()
    by_label = {1.0: weights["desirable_weight"] / 2, 0.0: weights["undesirable_weight"] / 2}
    values = [
        sum(by_label[score] for score in scores[where].tolist())
        for scores, where in zip(inputs.scores, inputs.where, strict=True)
    ]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pair(dtype: torch.dtype = torch.float64) -> ObjectiveInputs:
    """A desirable response with h = 2 and an undesirable one with h = -1."""
    return inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]], dtype=dtype)


def with_statistics(inputs: ObjectiveInputs, rows: list[list[float]]) -> ObjectiveInputs:
    return replace(inputs, step_statistics=torch.tensor(rows, dtype=torch.float64))


def test_a_desirable_response_gains_and_an_undesirable_one_loses():
    objective = build({"name": "kto", "beta": 0.5})

    output = objective(pair())

    # 1 - sigmoid(0.5 * 2), 1 - sigmoid(0.5 * 1); the loss is their sum, its weight their number
    assert output.losses.tolist() == pytest.approx([2 - sigmoid(1.0) - sigmoid(0.5)], rel=1e-12)
    assert output.all_terms()["kto"].weight.tolist() == [2.0]
    assert output.rewards.tolist() == [[1.0, -0.5]]


def test_the_baseline_is_the_mean_log_ratio_of_mismatched_responses_of_the_step():
    objective = build({"name": "kto", "beta": 0.5, "desirable_weight": 3, "undesirable_weight": 2})
    inputs = with_statistics(pair(), [[6.0, 2.0], [-1.0, 1.0], [0.0, 0.0], [-2.0, 1.0]])

    losses, gradient = losses_and_gradient(objective, inputs)

    # z0 = (6 - 1 - 2) / 4 = 0.75: z = 0.5 * (2 - 0.75) = 0.625 and 0.5 * (0.75 + 1) = 0.875
    expected = 3 * (1 - sigmoid(0.625)) + 2 * (1 - sigmoid(0.875))
    assert losses.tolist() == pytest.approx([expected], rel=1e-12)
    # -lambda beta sigmoid(z) sigmoid(-z), and the opposite sign for the undesirable one
    slopes = [
        -3 * 0.5 * sigmoid(0.625) * sigmoid(-0.625),
        2 * 0.5 * sigmoid(0.875) * sigmoid(-0.875),
    ]
    assert gradient.tolist()[0] == pytest.approx(slopes, rel=1e-12)
    assert objective(inputs).metrics["baseline"].tolist() == [0.75]


@pytest.mark.parametrize(
    "rows", [[[-6.0, 2.0], [1.0, 1.0]], [[0.0, 0.0]]], ids=["negative", "none"]
)
def test_the_baseline_is_never_negative(rows: list[list[float]]):
    objective = build({"name": "kto"})

    assert torch.equal(objective(with_statistics(pair(), rows)).losses, objective(pair()).losses)


def test_the_baseline_is_no_path_for_gradients():
    statistics = torch.tensor([[3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    inputs = replace(pair(), step_statistics=statistics)
    inputs.policy_logps.requires_grad_()

    build({"name": "kto", "beta": 0.5})(inputs).losses.sum().backward()

    assert inputs.policy_logps.grad is not None
    assert statistics.grad is None


def test_its_statistic_is_the_sum_of_log_ratios_and_the_number_of_responses():
    inputs = inputs_of(
        [[-10.0, -30.0], [-5.0, math.nan]],
        [[-12.0, -29.0], [-1.0, math.inf]],
        [[1, 0], [1, 50]],
        where=[[True, True], [True, False]],
    )

    # 2 - 1 and -4
    assert build({"name": "kto"}).statistic(inputs).tolist() == [[1.0, 2.0], [-4.0, 1.0]]


def test_a_pair_gives_the_update_of_its_two_responses_alone():
    objective = build({"name": "kto", "desirable_weight": 2})
    apart = [
        inputs_of([[-10.0]], [[-12.0]], [[1]]),
        inputs_of([[-30.0]], [[-29.0]], [[0]]),
    ]
    mismatched = [inputs_of([[-7.0]], [[-8.0]], [[1]])]

    together = step_loss(objective, [pair()], mismatched)
    split = step_loss(objective, apart, mismatched)

    # z0 = 1: z = 0.1 * (2 - 1) and 0.1 * (1 + 1); the weights do not divide
    expected = (2 * (1 - sigmoid(0.1)) + 1 - sigmoid(0.2)) / 2
    assert together.item() == pytest.approx(expected, rel=1e-12)
    assert split.item() == pytest.approx(expected, rel=1e-12)


def test_responses_weigh_the_same_in_groups_of_any_size():
    objective = build({"name": "kto"})
    inputs = inputs_of(
        [[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[1, 1, 0], [0, 0, 0]],
        where=[[True, True, True], [True, False, False]],
    )

    loss = step_loss(objective, [inputs], [inputs])

    # z0 = max(0, -10 / 4)
    costs = [1 - sigmoid(-0.1), 1 - sigmoid(-0.2), 1 - sigmoid(0.3), 1 - sigmoid(0.4)]
    assert loss.item() == pytest.approx(sum(costs) / 4, rel=1e-12)


def test_responses_10000_nats_off_cost_their_weight_or_nothing_and_do_not_move():
    objective = build({"name": "kto", "desirable_weight": 3, "undesirable_weight": 2})
    far = [[-1e4, 1e4, -1e4, 1e4]]
    inputs = inputs_of(far, [[0.0] * 4], [[1, 1, 0, 0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(objective, inputs)

    # Lost and won, won and lost: 3 + 0 + 0 + 2
    assert losses.tolist() == [5.0]
    assert gradient.tolist() == [[0.0] * 4]


def test_a_response_that_is_nearly_right_still_costs_e_to_the_minus_z():
    inputs = inputs_of([[50.0]], [[0.0]], [[1]])

    losses = build({"name": "kto", "beta": 1.0})(inputs).losses

    # 1 - sigmoid(50) = e^-50 up to e^-100; as a difference it would be 0
    assert losses.item() == pytest.approx(math.exp(-50), rel=1e-12)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_random_groups_cost_what_loops_say(num_slots: int):
    objective = build(CASES[1])
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 3, num_slots=num_slots).inputs
    mismatched = draw(objective, seed=99, num_groups=num_slots + 3, num_slots=num_slots).inputs
    statistics = objective.statistic(mismatched)

    losses = objective(replace(inputs, step_statistics=statistics)).losses.tolist()

    ratios = (mismatched.policy_logps - mismatched.reference_logps)[mismatched.where].tolist()
    baseline = max(0.0, sum(ratios) / len(ratios))
    for g, loss in enumerate(losses):
        expected = 0.0
        for k in range(num_slots):
            if inputs.where[g, k]:
                ratio = (inputs.policy_logps[g, k] - inputs.reference_logps[g, k]).item()
                gain = 0.5 * (ratio - baseline)
                is_good = inputs.scores[g, k] == 1
                expected += 1.5 * (1 - sigmoid(gain)) if is_good else 0.7 * (1 - sigmoid(-gain))
        assert loss == pytest.approx(expected, rel=1e-9)


def warning(section: dict[str, object], labels: list[int]) -> str | None:
    scores = torch.tensor([[float(label), 50.0] for label in labels])
    where = torch.tensor([[True, False]] * len(labels))
    return build({"name": "kto", **section}).warning(scores, where)


def test_it_warns_of_labels_out_of_balance():
    assert warning({}, [1, 0]) is None
    assert warning({}, [1, 1, 1, 1, 0, 0, 0]) is None
    assert warning({"undesirable_weight": 3}, [1, 1, 1, 0]) is None
    assert warning({"undesirable_weight": 1.5}, [1, 1, 1, 0]) == (
        "objective: 3 desirable responses weigh 3 in sum and 1 undesirable ones 1.5; the first "
        "should be 1 to 4/3 times the second. Change desirable_weight or undesirable_weight, "
        "not both."
    )
    assert "1 desirable responses weigh 1 in sum and 2 " in str(warning({}, [1, 0, 0]))
    assert "2 desirable responses weigh 2 in sum and 0 " in str(warning({}, [1, 1]))


@pytest.mark.parametrize("name", ["beta", "desirable_weight", "undesirable_weight"])
def test_wrong_parameters_are_refused(name: str):
    with pytest.raises(UserError, match=rf"^objective\.{name} should be greater than 0, got 0\.$"):
        build({"name": "kto", name: 0})
