"""Gradient ascent: the sign, and over what it takes the mean."""

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, losses_and_gradient, one_by_one, step_loss
from tests.objectives.singly import labelled, length, logp, per_group

CASES = [
    {"name": "grad_ascent"},
    {"name": "grad_ascent", "reduction": "sequence_sum"},
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """Log-probs of what is to be forgotten: the reference says nothing here."""
    return per_group(inputs, lambda g: sum(logp(inputs, g, k) for k in labelled(inputs, g, 0)))


def three_groups() -> ObjectiveInputs:
    return inputs_of(
        [[-10.0, -30.0], [-8.0, -1.0], [-5.0, -5.0]],
        None,
        [[0, 1], [0, 0], [1, 1]],
        num_tokens=[[4, 10], [7, 2], [100, 100]],
    )


def test_the_loss_is_the_log_prob_of_what_is_to_be_forgotten():
    losses, gradient = losses_and_gradient(build({"name": "grad_ascent"}), three_groups())

    assert losses.tolist() == [-10.0, -9.0, 0.0]
    assert gradient.tolist() == [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(("reduction", "divisor"), [("token_mean", 13), ("sequence_sum", 3)])
def test_the_mean_is_over_tokens_or_responses_of_the_whole_step(reduction: str, divisor: int):
    objective = build({"name": "grad_ascent", "reduction": reduction})

    whole = step_loss(objective, [three_groups()])
    split = step_loss(objective, one_by_one(three_groups()))

    # 10 + 8 + 1 nats over 4 + 7 + 2 tokens of 3 responses
    assert whole.item() == pytest.approx(-19 / divisor, rel=1e-12)
    assert split.item() == pytest.approx(-19 / divisor, rel=1e-12)


def test_what_is_not_to_be_forgotten_is_not_counted():
    output = build({"name": "grad_ascent"})(three_groups())

    assert output.counted.tolist() == [True, True, False]
    assert output.rewards.tolist() == [[-10.0, -30.0], [-8.0, -1.0], [-5.0, -5.0]]


def test_it_is_nll_with_the_sign_turned():
    inputs = inputs_of([[-10.0], [-3.0]], None, [[0], [0]], num_tokens=[[4], [2]])
    nll = build({"name": "nll", "of": "all", "reduction": "token_mean"})

    loss = step_loss(build({"name": "grad_ascent"}), [inputs])

    assert loss.item() == pytest.approx(-step_loss(nll, [inputs]).item(), rel=1e-14)


@pytest.mark.parametrize("num_slots", range(1, 17))
def test_every_response_counts_alone(num_slots: int):
    objective = build({"name": "grad_ascent"})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 2, num_slots=num_slots).inputs

    losses, gradient = losses_and_gradient(objective, inputs)
    weight = objective(inputs).all_terms()["forget"].weight

    torch.testing.assert_close(losses, value_at_reference(objective, inputs), rtol=1e-13, atol=0)
    for g in range(num_slots + 2):
        forgotten = labelled(inputs, g, 0)
        assert weight[g].item() == sum(length(inputs, g, k) for k in forgotten)
        assert gradient[g].tolist() == [float(k in forgotten) for k in range(num_slots)]


def test_the_loss_has_no_lower_bound():
    inputs = inputs_of([[-1e4]], None, [[0]], dtype=torch.float32)

    losses, gradient = losses_and_gradient(build({"name": "grad_ascent"}), inputs)

    assert losses.tolist() == [-1e4]
    assert gradient.tolist() == [[1.0]]


def test_a_wrong_reduction_is_refused():
    with pytest.raises(UserError, match=r"^objective\.reduction should be 'token_mean' or 'seq"):
        build({"name": "grad_ascent", "reduction": "sequence_mean"})
