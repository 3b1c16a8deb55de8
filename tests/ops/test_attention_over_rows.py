"""Attention over a flat row, by every kernel, against one softmax under one mask of the row."""

import random
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.ops.cascade import cascade_on_cpu
from prefopt.ops.plain_attention import plain_attention
from prefopt.ops.segments import Segments, parts_of

NUM_HEADS, NUM_KEY_HEADS, SIZE, SCALE = 4, 2, 8, 0.4
ROWS = {
    "one prompt, one response": Segments(prompt_lengths=(5,), response_lengths=((4,),)),
    "ragged": Segments(prompt_lengths=(7, 1, 12), response_lengths=((3, 9), (4,), (1, 6, 2))),
    "many responses": Segments(prompt_lengths=(3,), response_lengths=((2,) * 16,)),
    "whole sequences": Segments(prompt_lengths=(6, 1, 11), response_lengths=((), (), ())),
    # Longer than the blocks that the kernels work in.
    "long": Segments(prompt_lengths=(300, 40), response_lengths=((70, 133), (513,))),
}
WINDOWS = [None, 1, 2, 3, 7, 64, 1000]


def visible(segments: Segments, window: int | None) -> torch.Tensor:
    """Which token sees which, from what a row is, token by token."""
    # Of each token: its group, its segment in the group (0 is the prompt), its position.
    tokens = [
        (g, 0, position)
        for g, length in enumerate(segments.prompt_lengths)
        for position in range(length)
    ]
    for g, (prompt, lengths) in enumerate(
        zip(segments.prompt_lengths, segments.response_lengths, strict=True)
    ):
        for k, length in enumerate(lengths, start=1):
            tokens += [(g, k, prompt + position) for position in range(length)]
    group, segment, position = torch.tensor(tokens).unbind(dim=1)
    same_text = (group[:, None] == group) & ((segment[:, None] == segment) | (segment == 0))
    # Nothing in a prompt sees a response: those of the same group have later positions.
    distance = position[:, None] - position
    seen = same_text & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def masked_softmax(query, key, value, segments, *, scale, window, softcap=None, sinks=None):
    key, value = (
        each.repeat_interleave(NUM_HEADS // NUM_KEY_HEADS, dim=1) for each in (key, value)
    )
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(segments, window), -torch.inf)
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1] @ value
    return scores.softmax(-1) @ value


def drawn(segments: Segments, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Query, key and value as models have them: heads next to each other per token."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(1, segments.num_tokens, heads, SIZE, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (NUM_HEADS, NUM_KEY_HEADS, NUM_KEY_HEADS)
    )


def with_gradients(attention, segments, dtype, **settings):
    tensors = drawn(segments, dtype)
    out = attention(*tensors, segments, scale=SCALE, **settings)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    return out, *torch.autograd.grad((out * weight).sum(), tensors)


@pytest.mark.parametrize("attention", [cascade_on_cpu, plain_attention])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("segments", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_outputs_and_gradients_are_those_of_one_softmax(
    attention, segments, window, dtype, tolerance
):
    found = with_gradients(attention, segments, dtype, window=window)

    expected = with_gradients(masked_softmax, segments, torch.float64, window=window)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance)


def test_bfloat16_stays_within_its_rounding():
    segments = ROWS["ragged"]

    found = with_gradients(cascade_on_cpu, segments, torch.bfloat16, window=None)

    # From the same rounded inputs.
    tensors = [each.detach().double() for each in drawn(segments, torch.bfloat16)]
    expected = masked_softmax(*tensors, segments, scale=SCALE, window=None)
    # Half a step of 8 bits, for values up to 2.
    assert (found[0].double() - expected).abs().max() < 2**-7


@pytest.mark.parametrize("settings", [{"softcap": 0.7}, {"sinks": torch.randn(NUM_HEADS).double()}])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("segments", ROWS.values(), ids=ROWS)
def test_caps_and_sinks_are_those_of_one_softmax(segments, window, settings):
    found = with_gradients(plain_attention, segments, torch.float64, window=window, **settings)

    expected = with_gradients(masked_softmax, segments, torch.float64, window=window, **settings)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    without = plain_attention(*drawn(segments, torch.float64), segments, scale=SCALE, window=window)
    assert (found[0] - without).abs().max() > 1e-3


def test_sinks_learn():
    sinks = torch.zeros(NUM_HEADS, dtype=torch.float64, requires_grad=True)
    segments = ROWS["ragged"]
    attend = partial(plain_attention, *drawn(segments, torch.float64), segments)

    out = attend(scale=SCALE, window=None, sinks=sinks).sum()

    (found,) = torch.autograd.grad(out, sinks)
    expected = masked_softmax(
        *drawn(segments, torch.float64), segments, scale=SCALE, window=None, sinks=sinks
    )
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), sinks)[0])


@pytest.mark.parametrize("window", WINDOWS)
def test_parts_cover_what_is_seen_once_and_nothing_else(window):
    for segments in ROWS.values():
        count = torch.zeros(segments.num_tokens, segments.num_tokens, dtype=torch.int64)
        parts = parts_of(segments, window)
        for part in (*parts.own, *parts.prefix):
            for i in range(part.queries.length):
                for j in range(part.keys.length):
                    distance = i + part.offset - j
                    near = part.window is None or distance < part.window
                    if near and (not part.is_causal or distance >= 0):
                        count[part.queries.start + i, part.keys.start + j] += 1

        assert torch.equal(count, visible(segments, window).long())


class CountedProducts(TorchDispatchMode):
    """Query-key products that the flash kernels are asked for, and their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.num_products = self.num_calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function == torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.num_calls += 1
            self.num_products += args[0].shape[2] * args[1].shape[2]
        return function(*args, **(kwargs or {}))


def test_a_prompt_is_neither_copied_nor_masked_out():
    # One prompt of 50 for 4 responses of 10: own squares, and 40 responses' tokens over the prompt.
    segments = Segments(prompt_lengths=(50,), response_lengths=((10,) * 4,))

    with CountedProducts() as counted:
        cascade_on_cpu(*drawn(segments, torch.float32), segments, scale=SCALE, window=None)

    assert counted.num_products == 50 * 50 + 4 * 10 * 10 + 40 * 50
    assert counted.num_calls == 1 + 4 + 1


def test_random_rows_agree_in_float64():
    generator = random.Random(0)
    for _ in range(25):
        num = generator.randint(1, 4)
        segments = Segments(
            prompt_lengths=tuple(generator.randint(1, 20) for _ in range(num)),
            response_lengths=tuple(
                tuple(generator.randint(1, 20) for _ in range(generator.randint(1, 5)))
                for _ in range(num)
            ),
        )
        window = generator.choice([None, 1, 4, 11, 25])
        found = with_gradients(cascade_on_cpu, segments, torch.float64, window=window)
        expected = with_gradients(masked_softmax, segments, torch.float64, window=window)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
