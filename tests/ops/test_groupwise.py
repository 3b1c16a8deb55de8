"""A loss that is a sum over groups: the gradients of autograd, with fewer products."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefopt.ops.groupwise import groupwise_loss
from tests.ops.heads import NUM_TOKENS, VARIANTS, Counter, Head, assert_all_close

# Groups of K = 1, 2 or 3 responses, by tokens of each response. 2 + 3 + 4 + 6 + 1 + 0 + 7 = 23.
GROUPS = [[2], [1, 2], [1, 1, 2], [3, 3], [1], [0], [7]]
NUM_TOKENS_PER_GROUP = tuple(map(sum, GROUPS))
ALL_TRAINED = ("hidden", "weight", "bias")


def group_loss(group: int, logps: Tensor) -> Tensor:
    """Couples all responses of a group, by their sums, with weights of its own."""
    sums = torch.stack([part.sum() for part in logps.split(GROUPS[group])])
    return (group + 1) * (0.3 * sums).logsumexp(0) - sums[0].sigmoid() + 0.01 * (sums**2).sum()


def coefficients(start: int, stop: int, logps: Tensor) -> Tensor:
    logps = logps.requires_grad_()
    parts = logps.split(NUM_TOKENS_PER_GROUP[start:stop])
    losses = [group_loss(group, part) for group, part in enumerate(parts, start)]
    return torch.autograd.grad(torch.stack(losses).sum(), logps)[0]


def plain_loss(head: Head) -> Tensor:
    parts = head.plain_logps().split(NUM_TOKENS_PER_GROUP)
    return torch.stack([group_loss(group, part) for group, part in enumerate(parts)]).sum()


def groupwise(
    head: Head,
    num_tokens_per_tile: int,
    coefficients: Callable[[int, int, Tensor], Tensor] = coefficients,
) -> tuple[Tensor, Tensor]:
    return groupwise_loss(
        head.hidden,
        head.targets,
        head.weight,
        head.bias,
        num_tokens_per_group=NUM_TOKENS_PER_GROUP,
        coefficients=coefficients,
        num_tokens_per_tile=num_tokens_per_tile,
        scale=head.scale,
        softcap=head.softcap,
    )


def gradients(scalar: Tensor, head: Head) -> tuple[Tensor, ...]:
    return torch.autograd.grad(scalar, [getattr(head, name) for name in head.trained])


# Tiles smaller than most groups, than some, than two, and larger than all.
@pytest.mark.parametrize("num_tokens_per_tile", [1, 3, 5, 7, 10, NUM_TOKENS, 1000])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_log_probs_and_gradients_are_those_of_the_loss(
    num_tokens_per_tile: int, variant: dict[str, float | None], has_bias: bool
):
    head = Head(trained=ALL_TRAINED if has_bias else ALL_TRAINED[:2], has_bias=has_bias, **variant)

    logps, scalar = groupwise(head, num_tokens_per_tile)

    assert scalar.item() == 0.0
    assert not logps.requires_grad
    torch.testing.assert_close(logps, head.plain_logps().detach(), rtol=1e-12, atol=1e-12)
    # The scalar's own factor multiplies all.
    assert_all_close(
        gradients(-2.5 * scalar, head), gradients(-2.5 * plain_loss(head), head), 1e-12
    )


@pytest.mark.parametrize("num_tokens_per_tile", [3, 10])
def test_in_float32_gradients_stay_within_1e5th(num_tokens_per_tile: int):
    head = Head(trained=ALL_TRAINED, has_bias=True, dtype=torch.float32)

    _, scalar = groupwise(head, num_tokens_per_tile)

    exact = head.to(torch.float64)
    assert_all_close(gradients(scalar, head), gradients(plain_loss(exact), exact), 1e-5)


def test_bfloat16_gives_float32_log_probs_and_gradients_as_good_as_its_numbers():
    head = Head(trained=ALL_TRAINED[:2], dtype=torch.bfloat16, scale=0.3)

    logps, scalar = groupwise(head, 10)

    assert logps.dtype == scalar.dtype == torch.float32
    exact = head.to(torch.float64)
    for one, other in zip(
        gradients(scalar, head), gradients(plain_loss(exact), exact), strict=True
    ):
        assert one.dtype == torch.bfloat16
        # bfloat16 has 8 bits, and the loss depends on rounded logits.
        assert (one.double() - other).norm() <= 2**-5 * other.norm()


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",)])
def test_only_what_is_trained_gets_a_gradient(trained: tuple[str, ...]):
    head = Head(trained=trained, has_bias=True)

    _, scalar = groupwise(head, 10)

    assert_all_close(gradients(scalar, head), gradients(plain_loss(head), head), 1e-12)


def test_a_weight_that_is_used_elsewhere_gets_both_gradients():
    head = Head(trained=("hidden", "weight"))

    def elsewhere() -> Tensor:
        return (head.weight[head.targets] ** 2).sum()

    _, scalar = groupwise(head, 10)
    found = gradients(scalar + elsewhere(), head)

    assert_all_close(found, gradients(plain_loss(head) + elsewhere(), head), 1e-12)


def test_runs_of_whole_groups_share_a_tile():
    calls: list[tuple[int, int, int]] = []

    def recorded(start: int, stop: int, logps: Tensor) -> Tensor:
        calls.append((start, stop, logps.shape[0]))
        return coefficients(start, stop, logps)

    groupwise(Head(trained=("hidden", "weight")), 6, recorded)

    # 2 + 3 | 4 | 6 | 1 + 0 | 7: the last alone, although it exceeds a tile.
    assert calls == [(0, 2, 5), (2, 3, 4), (3, 4, 6), (4, 6, 1), (6, 7, 7)]


def test_groups_that_fit_a_tile_take_three_products_and_none_later():
    head = Head(trained=("hidden", "weight"))

    with Counter() as forward:
        _, scalar = groupwise(head, 7)
    with Counter() as backward:
        gradients(scalar, head)

    # 2 + 3 | 4 | 6 + 1 + 0 | 7
    assert (forward.num_products, backward.num_products) == (4 * 3, 0)


def test_a_group_larger_than_a_tile_recomputes_all_but_its_last_tile():
    head = Head(trained=("hidden", "weight"))

    with Counter() as counter:
        groupwise(head, 6)

    # 4 runs in a tile each; then the group of 7 in tiles of 1 and 6, of which only the first again.
    assert counter.num_products == 4 * 3 + 3 + 4
    # Hidden states against the weight, and logits against the weight: 23 tokens each, and the one.
    assert counter.num_rows["mm"] == 23 + 1 + 23


def test_the_backward_pass_needs_no_weight_and_runs_once():
    head = Head(trained=("hidden", "weight"))
    expected = gradients(plain_loss(head), head)

    _, scalar = groupwise(head, 7)
    head.weight.untyped_storage().resize_(0)
    found = torch.autograd.grad(scalar, [head.hidden, head.weight], retain_graph=True)

    assert_all_close(found, expected, 1e-12)
    with pytest.raises(AssertionError, match="once"):
        scalar.backward()


def test_tokens_outside_groups_are_refused():
    head = Head(trained=("hidden", "weight"))

    with pytest.raises(AssertionError, match="every token"):
        groupwise_loss(
            head.hidden,
            head.targets,
            head.weight,
            None,
            num_tokens_per_group=(22,),
            coefficients=coefficients,
            num_tokens_per_tile=6,
        )
