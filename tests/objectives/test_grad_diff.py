"""Gradient difference: both signs, and over what each side takes the mean."""

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient, one_by_one, step_loss
from tests.objectives.singly import labelled, logp, per_group

CASES = [
    {"name": "grad_diff"},
    {"name": "grad_diff", "retain_weight": 2.5},
    {"name": "grad_diff", "retain_weight": 0.5, "reduction": "sequence_sum"},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The difference before its denominators: the reference says nothing here."""

    def side(g: int, label: int) -> float:
        return sum(logp(inputs, g, k) for k in labelled(inputs, g, label))

    return per_group(inputs, lambda g: side(g, 0) - objective.retain_weight * side(g, 1))


def three_groups() -> ObjectiveInputs:
    return inputs_of(
        [[-10.0, -30.0], [-8.0, -1.0], [-6.0, -9.0]],
        None,
        [[0, 1], [0, 0], [1, 0]],
        num_tokens=[[4, 10], [7, 2], [3, 100]],
        where=[[True, True], [True, True], [True, False]],
    )


def test_the_loss_is_the_log_prob_of_one_side_less_that_of_the_other():
    objective = build({"name": "grad_diff", "retain_weight": 2.0})

    losses, gradient = losses_and_gradient(objective, three_groups())

    assert losses.tolist() == [-10.0 + 60.0, -9.0, 12.0]
    assert gradient.tolist() == [[1.0, -2.0], [1.0, 1.0], [-2.0, 0.0]]


@pytest.mark.parametrize(
    ("reduction", "forgotten", "retained"), [("token_mean", 13, 13), ("sequence_sum", 3, 2)]
)
def test_each_side_has_its_own_mean_over_the_step(reduction: str, forgotten: int, retained: int):
    objective = build({"name": "grad_diff", "retain_weight": 2.0, "reduction": reduction})

    whole = step_loss(objective, [three_groups()])
    split = step_loss(objective, one_by_one(three_groups()))

    # 19 nats over 4 + 7 + 2 tokens of 3 responses; 36 nats over 10 + 3 tokens of 2
    assert whole.item() == pytest.approx(-19 / forgotten + 2 * 36 / retained, rel=1e-12)
    assert split.item() == pytest.approx(whole.item(), rel=1e-12)


def test_its_forget_side_is_gradient_ascent():
    inputs = three_groups()

    forget = build({"name": "grad_diff"})(inputs).all_terms()["forget"]
    ascent = build({"name": "grad_ascent"})(inputs).all_terms()["forget"]

    assert torch.equal(forget.losses, ascent.losses)
    assert torch.equal(forget.weight, ascent.weight)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_every_response_counts_alone(num_slots: int):
    objective = build({"name": "grad_diff", "retain_weight": 0.3})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)

    expected = torch.zeros_like(gradient)
    for g in range(num_slots + 2):
        expected[g, labelled(inputs, g, 0)] = 1.0
        expected[g, labelled(inputs, g, 1)] = -0.3
    torch.testing.assert_close(
        losses, value_at_reference(objective, inputs), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)


def test_log_probs_of_10000_nats_count_in_full():
    inputs = inputs_of([[-1e4, -2e4]], None, [[0, 1]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(build({"name": "grad_diff"}), inputs)

    assert losses.tolist() == [1e4]
    assert gradient.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"retain_weight": 0}, r"^objective\.retain_weight should be greater than 0, got 0\.$"),
        ({"reduction": "mean"}, r"^objective\.reduction should be 'token_mean' or 'sequence_sum'"),
    ],
)
def test_a_wrong_parameter_is_refused(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "grad_diff", **section})
