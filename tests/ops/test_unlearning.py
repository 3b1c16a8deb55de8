"""The parts of unlearning losses: sides, means over the step, metrics, warnings."""

import math

import pytest
import torch

from prefopt.ops.unlearning import (
    forgotten,
    mean_over_responses,
    mean_over_tokens,
    retained,
    unlearning_output,
    warning_of_unread,
)
from prefopt.types import ObjectiveInputs

NAN = float("nan")
SCORES = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, NAN], [0.0, 0.0, 1.0]], dtype=torch.float64)
WHERE = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
LOGPS = torch.tensor([[-6.0, -8.0, -3.0], [-9.0, NAN, math.inf], [1.0, 2.0, NAN]]).double()
NUM_TOKENS = torch.tensor([[2, 4, 6], [3, -7, 0], [0, 0, -7]])


def test_0_is_to_forget_and_1_to_retain_where_there_is_a_response():
    assert forgotten(SCORES, WHERE).tolist() == [[True, False, True], [False] * 3, [False] * 3]
    assert retained(SCORES, WHERE).tolist() == [
        [False, True, False],
        [True, *[False] * 2],
        [False] * 3,
    ]


def test_a_mean_over_responses_is_weighed_by_their_number():
    term = mean_over_responses(LOGPS, forgotten(SCORES, WHERE))

    assert term.losses.tolist() == [-9.0, 0.0, 0.0]
    assert term.weight.tolist() == [2.0, 0.0, 0.0]
    assert term.coefficient == 1.0


def test_a_mean_over_tokens_is_weighed_by_theirs():
    term = mean_over_tokens(LOGPS, forgotten(SCORES, WHERE), NUM_TOKENS, coefficient=0.5)

    assert term.losses.tolist() == [-9.0, 0.0, 0.0]
    assert term.weight.tolist() == [8.0, 0.0, 0.0]
    assert term.coefficient == 0.5


def test_the_output_adds_terms_by_their_coefficients_and_logs_both_sides():
    inputs = ObjectiveInputs(
        policy_logps=LOGPS, reference_logps=None, num_tokens=NUM_TOKENS, scores=SCORES, where=WHERE
    )
    terms = {
        "forget": mean_over_responses(LOGPS, forgotten(SCORES, WHERE)),
        "retain": mean_over_responses(-LOGPS, retained(SCORES, WHERE), 0.5),
    }

    output = unlearning_output(inputs, terms, torch.zeros(3, 3).double())

    # -6 - 3 + 0.5 * 8, 0.5 * 9, and nobody
    assert output.losses.tolist() == [-5.0, 4.5, 0.0]
    assert output.counted.tolist() == [True, True, False]
    # (-6 / 2 - 3 / 6) / 2 and -8 / 4; -9 / 3
    forget, retain = (output.metrics[f"mean_logps/{side}"] for side in ("forget", "retain"))
    assert forget.tolist() == pytest.approx([-1.75, NAN, NAN], nan_ok=True)
    assert retain.tolist() == pytest.approx([-2.0, -3.0, NAN], nan_ok=True)


def test_what_would_be_retained_is_worth_a_warning():
    assert "retains nothing" in warning_of_unread(SCORES, WHERE)
    assert warning_of_unread(SCORES, WHERE & (SCORES != 1)) is None
