"""The types that cross borders: sums over tokens, slots of groups, and what is refused."""

import pytest
import torch

from prefopt.data.collate import collate
from prefopt.types import (
    GroupBatch,
    ObjectiveInputs,
    ObjectiveOutput,
    TokenInputs,
    TokenizedRecord,
)


def batch_of(lengths: list[list[int]]) -> GroupBatch:
    """Groups with responses of these lengths."""
    return collate(
        [
            TokenizedRecord(
                id=f"r{g}",
                prompt_ids=torch.arange(g + 1),
                response_ids=tuple(torch.arange(length) for length in responses),
                scores=tuple(float(k) for k in range(len(responses))),
            )
            for g, responses in enumerate(lengths)
        ]
    )


def test_sums_over_tokens_land_in_the_slot_of_their_response():
    batch = batch_of([[2, 1, 3], [4], [1, 2]])
    values = torch.arange(1.0, 14.0, dtype=torch.float64, requires_grad=True)

    sums = batch.sum_over_tokens(values)

    # 1+2 | 3 | 4+5+6 ; 7+8+9+10 ; 11 | 12+13
    assert sums.tolist() == [[3, 3, 15], [34, 0, 0], [11, 25, 0]]


def test_a_token_gets_the_gradient_of_its_response():
    batch = batch_of([[2, 1, 3], [4], [1, 2]])
    values = torch.zeros(13, dtype=torch.float64, requires_grad=True)
    factors = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.float64)

    (batch.sum_over_tokens(values) * factors).sum().backward()

    # The factor of slot g * K + k for each of its tokens; unused slots have none.
    expected = [factors.flatten()[slot].item() for slot in batch.response_of_token.tolist()]
    assert values.grad.tolist() == expected == [1, 1, 2, 3, 3, 3, 4, 4, 4, 4, 7, 8, 8]


def test_values_of_responses_go_to_their_slots():
    batch = batch_of([[2, 1, 3], [4], [1, 2]])

    slots = batch.to_groups(torch.tensor([0.1, 2, 3, 4, 5, 6], dtype=torch.float64))

    # In their own dtype: float32 would round 0.1.
    assert slots.tolist() == [[0.1, 2, 3], [4, 0, 0], [5, 6, 0]]


def test_moving_a_batch_keeps_all_dtypes_and_all_that_is_no_tensor():
    batch = batch_of([[2, 1], [3]])

    moved = batch.to(torch.device("meta"))

    for name in ("input_ids", "position_ids", "targets", "where", "scores", "num_tokens"):
        assert getattr(moved, name).dtype == getattr(batch, name).dtype
        assert getattr(moved, name).device.type == "meta"
    assert moved.scores.dtype == torch.float64
    assert (moved.ids, moved.layout) == (batch.ids, batch.layout)


def inputs(**changes: object) -> ObjectiveInputs:
    """One group of two slots, the second one unused."""
    values: dict[str, object] = {
        "policy_logps": torch.tensor([[-2.0, float("nan")]], requires_grad=True),
        "reference_logps": torch.tensor([[-5.0, float("inf")]], dtype=torch.float64),
        "num_tokens": torch.tensor([[3, -7]]),
        "scores": torch.tensor([[1.0, 50.0]]),
        "where": torch.tensor([[True, False]]),
    }
    return ObjectiveInputs(**{**values, **changes})


def test_log_ratios_come_in_the_policys_dtype_and_are_0_in_unused_slots():
    given = inputs()

    log_ratios = given.log_ratios()
    log_ratios.sum().backward()

    # -2 - (-5)
    assert log_ratios.tolist() == [[3.0, 0.0]]
    assert log_ratios.dtype == torch.float32
    assert given.policy_logps.grad.tolist() == [[1.0, 0.0]]


def test_log_ratios_without_a_reference_say_what_to_do():
    with pytest.raises(ValueError, match="needs_reference = True"):
        inputs(reference_logps=None).log_ratios()


def test_an_output_without_terms_has_one_whose_weight_is_what_counts():
    output = ObjectiveOutput(
        losses=torch.tensor([0.5, 0.0], dtype=torch.float64),
        counted=torch.tensor([True, False]),
        rewards=torch.zeros(2, 2),
        metrics={},
    )

    (term,) = output.all_terms().values()

    assert term.losses is output.losses
    assert term.weight.tolist() == [1.0, 0.0]
    assert term.weight.dtype == torch.float64
    assert term.coefficient == 1.0


def test_types_are_frozen():
    with pytest.raises(AttributeError):
        inputs().scores = torch.zeros(1, 2)


def test_a_field_of_tokens_that_was_not_given_is_named():
    tokens = TokenInputs(
        policy_logps=torch.zeros(1),
        reference_logps=None,
        response=torch.zeros(1, dtype=torch.int64),
        labels=torch.zeros(1, dtype=torch.int64),
    )

    with pytest.raises(ValueError, match=r"reads tokens\.top_logps; set the trait"):
        tokens.read("top_logps")


def test_per_token_values_are_summed_by_response_and_absent_tokens_are_0():
    where = torch.tensor([[True, True], [True, False]])
    zeros = torch.zeros(2, 2)
    tokens = TokenInputs(
        policy_logps=torch.tensor([1.0, 2.0, 4.0, 8.0]),
        reference_logps=None,
        response=torch.tensor([0, 0, 1, 2]),
        labels=torch.tensor([7, 7, 7, 7]),
    )
    inputs = ObjectiveInputs(
        policy_logps=zeros,
        reference_logps=None,
        num_tokens=torch.tensor([[2, 1], [1, -7]]),
        scores=zeros,
        where=where,
        tokens=tokens,
    )

    assert inputs.sum_over_tokens(tokens.policy_logps).tolist() == [[3.0, 4.0], [8.0, 0.0]]
