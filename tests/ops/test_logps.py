"""Log-probs equal log_softmax, statistics those of the distribution, in any number of tiles."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.ops.head_logps import tiled_target_logps
from prefopt.ops.logps import (
    target_logps,
    tiled_vocabulary_statistics,
    tokens_per_tile,
)

NUM_TOKENS, WIDTH, VOCABULARY = 23, 5, 300


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, an output projection, and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def gradients(logps: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Of a sum in which every token has its own factor."""
    factors = torch.linspace(-1, 2, NUM_TOKENS, dtype=logps.dtype)
    return torch.autograd.grad((factors * logps).sum(), parameters, retain_graph=True)


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result


def test_a_log_prob_is_the_logit_minus_the_log_of_the_sum_of_exponentials():
    logits = torch.tensor([[math.log(1.0), math.log(3.0), math.log(4.0)]], dtype=torch.float64)

    logps = target_logps(logits, torch.tensor([1]))

    # 3 / (1 + 3 + 4)
    assert logps.item() == pytest.approx(math.log(3 / 8), rel=1e-12)


def test_it_equals_log_softmax_in_value_and_gradient():
    hidden, weight, targets = tensors()

    logps = target_logps(hidden @ weight.T, targets)

    plain = torch.log_softmax(hidden @ weight.T, dim=1)[range(NUM_TOKENS), targets]
    torch.testing.assert_close(logps, plain, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        gradients(logps, hidden, weight), gradients(plain, hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", [-1000.0, 0.0, 1000.0])
def test_a_logit_1000_behind_costs_1000_nats(level: float):
    logits = torch.tensor([[level - 1000.0, level]], requires_grad=True)

    logps = target_logps(logits, torch.tensor([0]))
    logps.sum().backward()

    # 1 - softmax: 1 - 0 at the target, -1 at the other one
    assert logps.tolist() == [-1000.0]
    assert logits.grad.tolist() == [[1.0, -1.0]]


def test_a_tile_holds_128_mib_of_logits_and_at_least_one_token():
    # 2^27 bytes / (4 bytes * 2^17 words)
    assert tokens_per_tile(2**17) == 256
    assert tokens_per_tile(2**40) == 1


def test_beside_the_gradient_of_a_trained_projection_a_tile_may_take_a_quarter_of_that():
    # 2^17 words, width 4096: the gradient has 2 GiB, and 1024 tokens have logits of 512 MiB.
    assert tokens_per_tile(2**17, 4096) == 1024
    # 256 tokens of 128 MiB are more than 64 / 4.
    assert tokens_per_tile(2**17, 64) == 256


def statistics(num_tokens_per_tile: int, num_top: int = 4) -> tuple[Tensor, ...]:
    """Tiled statistics of policy and reference, and the tensors that they come from."""
    hidden, weight, targets = tensors()
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(NUM_TOKENS, 3, generator=generator, dtype=torch.float64)
    projection = torch.randn(VOCABULARY, 3, generator=generator, dtype=torch.float64)
    found = tiled_vocabulary_statistics(
        hidden,
        targets,
        lambda tile: tile @ weight.T,
        num_tokens_per_tile,
        num_top=num_top,
        reference_hidden=other,
        project_reference=lambda tile: tile @ projection.T,
    )
    return *found, hidden, weight, other, projection


@pytest.mark.parametrize("num_tokens_per_tile", [1, 7, NUM_TOKENS, 1000])
def test_top_log_probs_and_divergence_are_those_of_the_whole_distribution(num_tokens_per_tile: int):
    logps, top_logps, top_ids, kl, hidden, weight, *reference = statistics(num_tokens_per_tile)

    _, _, targets = tensors()
    plain = torch.log_softmax(hidden @ weight.T, dim=1)
    expected_top, expected_ids = plain.topk(4, dim=1)
    base = torch.distributions.Categorical(logits=reference[0] @ reference[1].T)
    expected_kl = torch.distributions.kl_divergence(
        base, torch.distributions.Categorical(logits=plain)
    )
    torch.testing.assert_close(logps, plain[range(NUM_TOKENS), targets], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(top_logps, expected_top, rtol=1e-12, atol=1e-12)
    assert torch.equal(top_ids, expected_ids)
    torch.testing.assert_close(kl, expected_kl, rtol=1e-10, atol=1e-12)
    for ours, theirs in ((top_logps[:, 2], expected_top[:, 2]), (kl, expected_kl)):
        for gradient, expected in zip(
            gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True
        ):
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_a_policy_has_no_divergence_from_itself_to_the_last_bit():
    hidden, weight, targets = tensors(torch.float32)

    found = tiled_vocabulary_statistics(
        hidden,
        targets,
        lambda tile: tile @ weight.T,
        6,
        num_top=0,
        reference_hidden=hidden.detach(),
        project_reference=lambda tile: tile @ weight.T,
    )
    same = tiled_target_logps(hidden, targets, weight, None, num_tokens_per_tile=6)

    assert found[3].tolist() == [0.0] * NUM_TOKENS
    assert torch.equal(found[0], same)
    assert found[1].shape == (NUM_TOKENS, 0)


def test_statistics_never_hold_the_logits_of_more_than_a_tile():
    with LargestTensor() as largest:
        found = statistics(6)
        sum(part.sum() for part in (found[0], found[1], found[3])).backward()

    # 6 * 300 logits per tile; all logits would be 23 * 300.
    assert largest.num_elements == 6 * VOCABULARY


def test_no_logits_are_kept_for_the_backward_pass_of_statistics():
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        statistics(6)

    # The weight is the largest tensor of all that are given.
    assert max(kept, default=0) <= VOCABULARY * WIDTH


def test_no_tokens_have_no_statistics():
    hidden, weight, targets = tensors()

    found = tiled_vocabulary_statistics(
        hidden[:0],
        targets[:0],
        lambda tile: tile @ weight.T,
        6,
        num_top=2,
        reference_hidden=None,
        project_reference=lambda tile: tile,
    )

    assert [None if part is None else part.shape for part in found] == [(0,), (0, 2), (0, 2), None]
