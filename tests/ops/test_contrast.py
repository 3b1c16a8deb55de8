"""Contrast with alternatives: which one is drawn, and what it costs."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefopt.ops.contrast import contrastive_losses
from prefopt.types import TokenInputs

LOGPS = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]


def tokens_of(label: int, noise: list[float], dtype: torch.dtype = torch.float64) -> TokenInputs:
    """The same position once per draw: tokens 0 to 3, less and less likely."""
    n = len(noise)
    top_logps = torch.tensor(LOGPS, dtype=dtype).repeat(n, 1)
    return TokenInputs(
        policy_logps=top_logps[:, label].clone(),
        reference_logps=None,
        response=torch.zeros(n, dtype=torch.int64),
        labels=torch.full((n,), label),
        top_logps=top_logps,
        top_ids=torch.arange(4).repeat(n, 1),
        noise=torch.tensor(noise, dtype=dtype),
    )


def cost(label: int, alternative: int) -> float:
    """softplus(log p - log q) = log(1 + p / q)."""
    return math.log1p(math.exp(LOGPS[label] - LOGPS[alternative]))


def drawn(losses: Tensor, label: int) -> list[int]:
    """Which alternative each loss belongs to."""
    costs = [cost(label, alternative) for alternative in range(4)]
    return [min(range(4), key=lambda a: abs(costs[a] - loss)) for loss in losses.tolist()]


def test_with_one_alternative_it_is_the_likeliest_other_token():
    for label, alternative in [(0, 1), (1, 0), (2, 0), (3, 0)]:
        losses = contrastive_losses(tokens_of(label, [0.0, 0.99]), num_alternatives=1)

        assert losses.tolist() == pytest.approx([cost(label, alternative)] * 2, rel=1e-12)


@pytest.mark.parametrize(
    ("label", "edges"),
    [
        # Without token 0, the two likeliest are 1 and 2: 0.3 / 0.45 and the rest.
        (0, [(1, 0.0), (1, 0.3 / 0.45 - 1e-9), (2, 0.3 / 0.45 + 1e-9), (2, 1 - 1e-12)]),
        # Without token 1 in the middle: 0 and 2, 0.5 / 0.65.
        (1, [(0, 0.0), (0, 0.5 / 0.65 - 1e-9), (2, 0.5 / 0.65 + 1e-9), (2, 1 - 1e-12)]),
        # Without the last of the three that are looked at: 0 and 1, 0.5 / 0.8.
        (2, [(0, 0.0), (0, 0.5 / 0.8 - 1e-9), (1, 0.5 / 0.8 + 1e-9), (1, 1 - 1e-12)]),
        # Token 3 is not among the likeliest three, so the third is left out instead.
        (3, [(0, 0.0), (0, 0.5 / 0.8 - 1e-9), (1, 0.5 / 0.8 + 1e-9), (1, 1 - 1e-12)]),
    ],
)
def test_the_noise_draws_from_the_likeliest_other_tokens_by_their_share(
    label: int, edges: list[tuple[int, float]]
):
    losses = contrastive_losses(tokens_of(label, [u for _, u in edges]), num_alternatives=2)

    assert drawn(losses, label) == [alternative for alternative, _ in edges]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("label", range(4))
def test_noise_that_a_cast_rounds_up_to_1_still_draws_a_token(label: int, dtype: torch.dtype):
    losses = contrastive_losses(tokens_of(label, [1.0], dtype), num_alternatives=3)

    last = 2 if label == 3 else 3
    assert losses.tolist() == pytest.approx([cost(label, last)], rel=1e-5)


def test_gradients_reach_the_token_and_the_alternative():
    tokens = tokens_of(1, [0.9])
    assert tokens.top_logps is not None
    tokens.policy_logps.requires_grad_()
    tokens.top_logps.requires_grad_()

    contrastive_losses(tokens, num_alternatives=2).sum().backward()

    # Alternative 2: the slope is sigmoid(log p(1) - log p(2)) = 0.3 / 0.45, and its opposite.
    assert tokens.policy_logps.grad is not None
    assert tokens.top_logps.grad is not None
    assert tokens.policy_logps.grad.tolist() == pytest.approx([2 / 3], rel=1e-12)
    assert tokens.top_logps.grad.tolist()[0] == pytest.approx([0, 0, -2 / 3, 0], rel=1e-12)


def test_a_gap_of_10000_nats_costs_10000_nats_or_nothing():
    top_logps = torch.tensor([[-1e4, -1e4], [0.0, -2e4]], requires_grad=True)
    tokens = TokenInputs(
        policy_logps=torch.tensor([0.0, -1e4], requires_grad=True),
        reference_logps=None,
        response=torch.tensor([0, 0]),
        labels=torch.tensor([5, 5]),
        top_logps=top_logps,
        top_ids=torch.tensor([[1, 2], [1, 2]]),
        noise=torch.zeros(2),
    )

    losses = contrastive_losses(tokens, num_alternatives=1)
    losses.sum().backward()

    assert losses.tolist() == [1e4, 0.0]
    assert tokens.policy_logps.grad is not None
    assert tokens.policy_logps.grad.tolist() == [1.0, 0.0]


def test_no_tokens_cost_nothing():
    losses = contrastive_losses(tokens_of(0, []), num_alternatives=2)

    assert losses.shape == (0,)


def test_only_a_draw_among_several_needs_noise():
    with_noise = tokens_of(1, [0.3, 0.9])
    without = replace(with_noise, noise=None)

    sure = contrastive_losses(without, num_alternatives=1)

    assert torch.equal(sure, contrastive_losses(with_noise, num_alternatives=1))
    with pytest.raises(ValueError, match=r"reads tokens\.noise"):
        contrastive_losses(without, num_alternatives=2)
