"""The log-prob head: log_softmax and its gradient, in few products, and no logits are kept."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from prefopt.ops.head_logps import tiled_target_logps
from tests.ops.heads import (
    NUM_TOKENS,
    TILES,
    VARIANTS,
    VOCABULARY,
    WIDTH,
    Counter,
    Head,
    assert_all_close,
    gradients,
)


def logps_of(head: Head, num_tokens_per_tile: int = 6) -> Tensor:
    return tiled_target_logps(
        head.hidden,
        head.targets,
        head.weight,
        head.bias,
        num_tokens_per_tile=num_tokens_per_tile,
        scale=head.scale,
        softcap=head.softcap,
    )


@pytest.mark.parametrize("num_tokens_per_tile", TILES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trained", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_value_and_gradient_are_those_of_log_softmax(
    num_tokens_per_tile: int, variant: dict[str, float | None], trained: tuple[str, ...]
):
    head = Head(trained=("hidden", *trained), has_bias=True, **variant)

    logps = logps_of(head, num_tokens_per_tile)

    plain = head.plain_logps()
    torch.testing.assert_close(logps, plain, rtol=1e-12, atol=1e-12)
    assert_all_close(gradients(logps, head), gradients(plain, head), 1e-12)


@pytest.mark.parametrize("num_tokens_per_tile", TILES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight"), ("weight",)])
def test_in_float32_it_stays_within_1e5th(
    num_tokens_per_tile: int, variant: dict[str, float | None], trained: tuple[str, ...]
):
    head = Head(dtype=torch.float32, trained=trained, **variant)

    logps = logps_of(head, num_tokens_per_tile)

    exact = head.to(torch.float64)
    torch.testing.assert_close(logps.double(), exact.plain_logps(), rtol=1e-5, atol=1e-5)
    assert_all_close(gradients(logps, head), gradients(exact.plain_logps(), exact), 1e-5)


def test_without_gradient_the_value_is_the_same_and_nothing_is_kept():
    head = Head(trained=("hidden", "weight"))
    with torch.no_grad():
        logps = logps_of(head)

    assert not logps.requires_grad
    assert torch.equal(logps, logps_of(head).detach())
    assert torch.equal(logps, logps_of(Head(trained=("hidden",))).detach())


# 23 tokens in tiles of 6 are 4 tiles.
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_frozen_projection_takes_two_products_per_tile_and_none_in_the_backward_pass(
    has_bias: bool,
):
    head = Head(trained=("hidden",), has_bias=has_bias)

    with Counter() as forward:
        logps = logps_of(head)
    with Counter() as backward:
        gradients(logps, head)

    assert (forward.num_products, backward.num_products) == (8, 0)


@pytest.mark.parametrize("trained", [("weight",), ("hidden", "weight")])
def test_a_projection_that_is_trained_takes_one_product_and_recomputes_it(trained: tuple[str, ...]):
    head = Head(trained=trained)

    with Counter() as forward:
        logps = logps_of(head)
    with Counter() as backward:
        gradients(logps, head)

    # Once more, and one for each gradient.
    assert (forward.num_products, backward.num_products) == (4, 4 * (1 + len(trained)))


@pytest.mark.parametrize("trained", [(), ("hidden",), ("hidden", "weight")])
def test_without_gradient_there_is_one_product_per_tile(trained: tuple[str, ...]):
    with Counter() as counter, torch.no_grad():
        logps_of(Head(trained=trained))

    assert counter.num_products == 4


def test_the_backward_pass_of_a_frozen_projection_does_not_need_its_weight():
    head = Head(trained=("hidden",))
    expected = gradients(head.plain_logps(), head)

    logps = logps_of(head)
    # As a sharded wrapper does when the forward pass is over.
    head.weight.untyped_storage().resize_(0)

    assert_all_close(gradients(logps, head), expected, 1e-12)


@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")])
def test_no_tensor_is_larger_than_the_logits_of_one_tile(trained: tuple[str, ...]):
    head = Head(trained=trained, softcap=2.0)

    # 6 * 300 logits per tile, 300 * 5 weights; all logits would be 23 * 300.
    with Counter() as counter:
        gradients(logps_of(head), head)

    assert counter.num_elements == 6 * VOCABULARY


def test_a_frozen_projection_keeps_as_much_as_the_hidden_states():
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logps_of(Head(trained=("hidden",)))

    assert kept == [NUM_TOKENS * WIDTH]


def test_a_projection_that_is_trained_keeps_no_logits():
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logps_of(Head(trained=("hidden", "weight")))

    assert sorted(kept) == sorted([NUM_TOKENS * WIDTH, VOCABULARY * WIDTH, NUM_TOKENS])


@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_10000_have_finite_gradients(trained: tuple[str, ...], dtype: torch.dtype):
    # Logits are 1e4, 0 and -1e4: the first token has all the probability.
    hidden = torch.tensor([[100.0], [100.0], [-100.0]], dtype=dtype)
    weight = torch.tensor([[100.0], [0.0], [-100.0]], dtype=dtype)
    hidden.requires_grad_("hidden" in trained)
    weight.requires_grad_("weight" in trained)

    logps = tiled_target_logps(hidden, torch.tensor([0, 2, 1]), weight, None, num_tokens_per_tile=2)
    logps.sum().backward()

    assert logps.tolist() == [0.0, -20000.0, -10000.0]
    # Target's weight minus the expected one: 100 - 100; -100 - 100; 0 - (-100).
    assert hidden.grad.tolist() == [[0.0], [-200.0], [100.0]]
    if "weight" in trained:
        # hidden * (onehot - probability), summed: -100; 0 - 100; 100 + 100.
        assert weight.grad.tolist() == [[-100.0], [-100.0], [200.0]]


@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")])
def test_bfloat16_gives_float32_log_probs_and_gradients_as_good_as_its_numbers(
    trained: tuple[str, ...],
):
    head = Head(dtype=torch.bfloat16, trained=trained, has_bias=True)

    logps = logps_of(head)

    assert logps.dtype == torch.float32
    # The logits carry bfloat16's rounding, the sum over the vocabulary does not.
    logits = torch.nn.functional.linear(head.hidden, head.weight, head.bias).double()
    rounded = torch.log_softmax(logits, dim=1)[range(NUM_TOKENS), head.targets]
    torch.testing.assert_close(logps.double(), rounded, rtol=0, atol=1e-5)
    exact = head.to(torch.float64)
    ours, theirs = gradients(logps, head), gradients(exact.plain_logps(), exact)
    for one, other, name in zip(ours, theirs, trained, strict=True):
        assert one.dtype == torch.bfloat16, name
        # bfloat16 has 8 bits.
        assert (one.double() - other).norm() <= 2**-6 * other.norm(), name


@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")])
@pytest.mark.parametrize("has_bias", [False, True])
def test_autocast_computes_as_a_linear_layer_would(trained: tuple[str, ...], has_bias: bool):
    head = Head(dtype=torch.float32, trained=trained, has_bias=has_bias)

    with torch.autocast("cpu", torch.bfloat16):
        logps = logps_of(head)
        logits = torch.nn.functional.linear(head.hidden, head.weight, head.bias)
    found = gradients(logps, head)

    assert logits.dtype == torch.bfloat16
    plain = torch.log_softmax(logits.double(), dim=1)[range(NUM_TOKENS), head.targets]
    torch.testing.assert_close(logps.double(), plain, rtol=0, atol=1e-5)
    for one, other in zip(found, gradients(plain, head), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 2**-6 * other.norm()


def test_autocast_leaves_float64_alone():
    head = Head(trained=("hidden",))

    with torch.autocast("cpu", torch.bfloat16):
        logps = logps_of(head)

    assert torch.equal(logps, logps_of(head))


def test_a_weight_that_is_used_elsewhere_gets_both_gradients():
    head = Head(trained=("hidden", "weight"))
    embedded = head.weight[head.targets]

    def loss(logps: Tensor) -> Tensor:
        return logps.sum() + (embedded**2).sum()

    found = torch.autograd.grad(loss(logps_of(head)), head.weight, retain_graph=True)
    expected = torch.autograd.grad(loss(head.plain_logps()), head.weight)

    assert_all_close(found, expected, 1e-12)


def test_second_derivatives_are_refused():
    head = Head(trained=("hidden",))
    loss = (logps_of(head) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, head.hidden, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")])
def test_no_tokens_have_no_log_probs_and_zero_gradients(trained: tuple[str, ...]):
    head = Head(trained=trained)

    logps = tiled_target_logps(
        head.hidden[:0], head.targets[:0], head.weight, None, num_tokens_per_tile=6
    )
    logps.sum().backward()

    assert logps.shape == (0,)
    assert head.hidden.grad.count_nonzero() == 0
    if "weight" in trained:
        assert head.weight.grad.count_nonzero() == 0
