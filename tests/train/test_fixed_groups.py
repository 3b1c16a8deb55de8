"""Beta, read off rewards."""

import pytest
import torch

from prefopt.diagnostics.ranking import HeldOut
from prefopt.train.fixed_groups import reward_per_nat

POLICY = torch.tensor([[-1.0, -4.0], [-2.0, 0.0]]).double()
REFERENCE = torch.tensor([[-2.0, -3.0], [-5.0, 0.0]]).double()
WHERE = torch.tensor([[True, True], [True, False]])


def held_out(rewards, reference=REFERENCE):
    return HeldOut(
        policy_logps=POLICY,
        start_logps=None,
        reference_logps=reference,
        num_tokens=torch.ones(2, 2).long(),
        scores=torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(),
        where=WHERE,
        rewards=rewards,
    )


def test_it_is_what_log_ratios_are_multiplied_by():
    assert reward_per_nat(held_out(0.3 * (POLICY - REFERENCE))) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("rewards", "reference"),
    [
        (None, REFERENCE),
        (POLICY, None),
        # No multiple of the log-ratios 1, -1 and 3.
        (POLICY, REFERENCE),
        # Policy and reference agree.
        (torch.zeros(2, 2).double(), POLICY),
        (-(POLICY - REFERENCE), REFERENCE),
    ],
)
def test_it_is_not_known_elsewhere(rewards, reference):
    assert reward_per_nat(held_out(rewards, reference)) is None
