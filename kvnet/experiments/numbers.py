"""Figures as people write them: four digits that count, an interval in brackets. Knows no layout."""

from __future__ import annotations

import math

from kvnet.experiments.statistics import Estimate

_LARGE = 1e5
_SMALL = 1e-3


def number_text(value: float) -> str:
    """0.8125, 22528, 1.2e-05."""
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e12:
        return str(int(value))
    if abs(value) < _SMALL or abs(value) >= _LARGE:
        return f"{value:.2e}"
    places = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 4)}f}".rstrip("0").rstrip(".")


def interval_text(at: Estimate) -> str:
    """[0.79, 0.83], or nothing where there is none."""
    if at.low is None or at.high is None:
        return ""
    return f"[{number_text(at.low)}, {number_text(at.high)}]"


def difference_text(value: float) -> str:
    """With its sign."""
    return f"+{number_text(value)}" if value > 0 else number_text(value)
