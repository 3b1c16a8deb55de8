"""What tests of evaluation share."""

import gc
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Ctrl-C as on a terminal: what a shell starts in the background ignores it from birth."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _no_heavy_garbage_collection() -> Iterator[None]:
    """statsmodels collects garbage in every Holm correction, over all that a test process holds.

    What was there before the test is left out of that: a simulation corrects thousands of times.
    """
    gc.freeze()
    yield
    gc.unfreeze()
