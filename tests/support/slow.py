"""Cases of which a few stand for the others in the fast suite."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(fast: Iterable[object], cases: Iterable[Any]) -> list[Any]:
    """All cases, those that are not among the fast ones marked as slow."""
    quick = list(fast)
    known = list(cases)
    assert all(case in known for case in quick)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in known]
