"""The trial that flash kernels for CUDA go through, with stand-ins where there is no GPU."""

from unittest.mock import patch

import pytest
import torch
from transformers import LlamaConfig

import prefopt.models.attention as attention
from prefopt.ops.cascade import cascade_on_cpu
from prefopt.ops.segments import Segments
from prefopt.ops.varlen import _gather_plan

CPU = torch.device("cpu")


@pytest.mark.parametrize("has_gradient", [True, False])
def test_a_kernel_that_agrees_passes_wherever_it_is_tried(has_gradient):
    with (
        patch.object(attention, "varlen_on_cuda", cascade_on_cpu),
        torch.set_grad_enabled(has_gradient),
    ):
        assert attention._try_varlen(CPU, 64) is None


def test_a_kernel_that_ignores_the_window_is_found():
    def unwindowed(*args, window, **kwargs):
        return cascade_on_cpu(*args, window=None, **kwargs)

    with patch.object(attention, "varlen_on_cuda", unwindowed):
        assert "results differ by" in attention._try_varlen(CPU, 64)


def test_a_kernel_is_tried_with_heads_as_large_as_the_model_has():
    def for_small_heads(query, *args, **kwargs):
        if query.shape[-1] > 64:
            raise RuntimeError("heads of 128 are not supported")
        return cascade_on_cpu(query, *args, **kwargs)

    with patch.object(attention, "varlen_on_cuda", for_small_heads):
        assert attention._try_varlen(CPU, 64) is None
        assert "heads of 128" in attention._try_varlen(CPU, 128)


@pytest.mark.parametrize(("given", "size"), [({}, 16), ({"head_dim": 24}, 24)])
def test_the_size_of_heads_is_said_by_the_configuration_or_implied(given, size):
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=1, vocab_size=8, **given
    )

    assert attention.head_size(config) == size


def test_a_kernel_that_is_not_there_is_a_reason():
    # The real one, on a machine for which it was not built.
    assert "varlen_on_cuda fails" in attention._try_varlen(CPU, 64)


def test_a_windowed_response_gathers_what_its_window_reaches():
    segments = Segments(prompt_lengths=(5, 2), response_lengths=((3, 1), (4,)))

    ends, longest, positions = _gather_plan(segments, 4, CPU)

    # Queries are the row: prompts of 5 and 2, responses of 3, 1 and 4. Keys: each prompt itself,
    # and each response behind at most the last 3 tokens of its prompt.
    assert ends[0].tolist() == [0, 5, 7, 10, 11, 15]
    assert ends[1].tolist() == [0, 5, 7, 13, 17, 23]
    assert longest == (5, 6)
    assert positions.tolist() == [
        *range(7),
        *[2, 3, 4, 7, 8, 9],
        *[2, 3, 4, 10],
        *[5, 6, 11, 12, 13, 14],
    ]
