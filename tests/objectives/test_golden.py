"""Every objective equals its authors' published code, on the inputs recorded in tests/golden."""

import pytest
import torch

from prefopt.objectives import build, registered
from tests.objectives.helpers import golden_cases, inputs_of, losses_and_gradient

CASES = [case for case in golden_cases() if case["objective"]["name"] in registered()]


def name_of(case: dict[str, object]) -> str:
    return "-".join(str(value) for value in case["objective"].values())


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize(
    ("dtype", "loss_tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-9, 1e-8), (torch.float32, 1e-5, 1e-5)],
    ids=["float64", "float32"],
)
def test_losses_and_gradients_are_those_of_the_published_code(
    case: dict[str, object],
    dtype: torch.dtype,
    loss_tolerance: float,
    gradient_tolerance: float,
):
    objective = build(case["objective"])
    inputs = inputs_of(
        case["policy_logps"],
        case["reference_logps"],
        case["scores"],
        num_tokens=case["num_tokens"],
        where=case["where"],
        dtype=dtype,
    )

    losses, gradient = losses_and_gradient(objective, inputs)
    if isinstance(case["losses"], float):
        # Coupled groups: one number for the whole call, the mean over the groups that count.
        num_counted = objective(inputs).counted.sum()
        losses, gradient = losses.sum() / num_counted, gradient / num_counted

    expected = torch.tensor(case["losses"], dtype=dtype)
    torch.testing.assert_close(losses, expected, rtol=loss_tolerance, atol=0)
    expected_gradient = torch.tensor(case["grad_policy_logps"], dtype=dtype)
    torch.testing.assert_close(
        gradient, expected_gradient, rtol=gradient_tolerance, atol=gradient_tolerance
    )


def test_dpo_and_ipo_have_cases_from_two_sources_each():
    found = {(case["objective"]["name"], case["file"]) for case in CASES}

    for name in ("dpo", "ipo"):
        assert {(name, "pairs_and_lists.json"), (name, "trl_1_16.json")} <= found
