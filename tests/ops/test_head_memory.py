"""Memory of the log-prob head with a large vocabulary, measured in a process of its own."""

import pytest

from tests.support.launch import run

NUM_TOKENS, WIDTH, VOCABULARY = 4096, 896, 151_936

# What getrusage calls the peak begins at that of the process that started this one; VmHWM is of
# this one alone, and writing 5 to clear_refs makes it begin at what is resident now.
MEASURE = f"""
import re, sys
from pathlib import Path
import torch
from prefopt.ops.head_logps import tiled_target_logps
from prefopt.ops.logps import tokens_per_tile

is_trained, softcap = sys.argv[1] == "trained", float(sys.argv[2]) or None

def peak():
    return 1024 * int(re.search("VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

def step(hidden, weight, num_tokens_per_tile):
    targets = torch.arange(hidden.shape[0]) % weight.shape[0]
    logps = tiled_target_logps(
        hidden, targets, weight, None, num_tokens_per_tile=num_tokens_per_tile, softcap=softcap
    )
    logps.sum().backward()
    assert hidden.grad.isfinite().all()

hidden = torch.randn({NUM_TOKENS}, {WIDTH}, requires_grad=True)
weight = torch.empty({VOCABULARY}, {WIDTH}).normal_(0, 0.02).requires_grad_(is_trained)
# Libraries set up what they keep.
small = torch.randn(512, {WIDTH}, requires_grad=is_trained)
step(torch.randn(64, {WIDTH}, requires_grad=True), small, 32)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
step(hidden, weight, tokens_per_tile({VOCABULARY}, {WIDTH} * is_trained))
print("extra bytes", peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize("projection", ["frozen", "trained"])
def test_4096_tokens_of_152k_words_take_less_than_350_megabytes(projection: str, softcap: float):
    result = run("-c", MEASURE, projection, str(softcap), timeout=900)

    assert result.returncode == 0, result.stderr
    extra = int(result.stdout.split()[-1])
    if projection == "trained":
        # The weight's gradient is what was asked for, and counts for itself: V * H in float32.
        gradient = 4 * VOCABULARY * WIDTH
        assert extra > gradient
        extra -= gradient
    # A tile of 220 tokens holds 128 MiB of logits, one of 896 / 4 tokens 136 MB; all of them would
    # be 2.5 GB.
    assert 130e6 < extra < 350e6
