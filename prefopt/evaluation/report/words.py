"""Numbers as people read them, each with its interval and what it is over."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from prefopt.evaluation.numbers import Estimate

Form = Literal["share", "number"]
"""A share is written in per cent."""

DASH, _MINUS = "\u2013", "\u2212"
_MOST_DECIMALS = 8


def value(estimate: Estimate, form: Form = "number") -> str:
    """The number alone, with as many decimals as its interval gives a meaning."""
    unit = " %" if form == "share" else ""
    return f"{_fixed(_scaled(estimate['value'], form), _decimals(estimate, form))}{unit}"


def interval(estimate: Estimate, form: Form = "number") -> str:
    """The two ends in brackets, or that there are none."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return "[no interval]"
    decimals = _decimals(estimate, form)
    ends = (_fixed(_scaled(end, form), decimals) for end in (low, high))
    return f"[{', '.join(ends)}]"


def over(estimate: Estimate) -> str:
    """`n = 805 prompts`."""
    num, unit = estimate["n"], estimate["unit"]
    return f"n = {num:,} {unit.removesuffix('s') if num == 1 else unit}"


def whole(estimate: Estimate, form: Form = "number") -> str:
    """`62.3 % [58.1, 66.0] (n = 805 prompts)`."""
    return f"{value(estimate, form)} {interval(estimate, form)} ({over(estimate)})"


class Counted:
    """Numbers of one sentence: what they are over is said once if it is the same for all."""

    def __init__(self, estimates: Iterable[Estimate]) -> None:
        counts = [over(each) for each in estimates]
        self._common = counts[0] if len(counts) > 1 and len(set(counts)) == 1 else None

    def number(self, estimate: Estimate, form: Form = "share") -> str:
        """With its interval, and with n unless the end of the sentence says it."""
        if self._common is None:
            return whole(estimate, form)
        return f"{value(estimate, form)} {interval(estimate, form)}"

    @property
    def end(self) -> str:
        """` (n = 805 prompts each)`, or nothing."""
        return "" if self._common is None else f" ({self._common} each)"


def tick(number: int | float, form: Form = "number") -> str:
    """A number on an axis."""
    scaled = round(_scaled(number, form), 9)
    written = f"{abs(scaled):g}{' %' if form == 'share' else ''}"
    return f"{_MINUS}{written}" if scaled < 0 else written


def p_value(p: float) -> str:
    """`0.012`, or `< 0.001`."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_is(p: float) -> str:
    """`= 0.012`, or `< 0.001`."""
    written = p_value(p)
    return written if written.startswith("<") else f"= {written}"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points."""
    return f"{_fixed(100 * difference, 1)} points"


def settings(values: Mapping[str, Any]) -> str:
    """`beta 0.1, learning_rate 1e-06`, or nothing."""
    return ", ".join(f"{key} {_plain(each)}" for key, each in values.items())


def listed(names: list[str], word: str = "and") -> str:
    """`a, b and c`."""
    return f" {word} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _plain(each: Any) -> str:
    return f"{each:g}" if isinstance(each, float) else str(each)


def _scaled(number: int | float, form: Form) -> int | float:
    return 100 * number if form == "share" else number


def _decimals(estimate: Estimate, form: Form) -> int:
    """Of a share one; else two digits of the width of the interval, or three of the number."""
    if form == "share":
        return 1
    low, high = estimate["low"], estimate["high"]
    width = 0.0 if low is None or high is None else high - low
    size, digits = (width, 2) if width > 0 else (abs(estimate["value"]), 3)
    if size == 0:
        return 0
    return min(max(digits - 1 - math.floor(math.log10(size)), 0), _MOST_DECIMALS)


def _fixed(number: int | float, decimals: int) -> str:
    written = f"{abs(number):,.{decimals}f}".replace(",", "\u202f")
    is_zero = not any(digit in written for digit in "123456789")
    return written if number >= 0 or is_zero else f"{_MINUS}{written}"
