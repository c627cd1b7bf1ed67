"""Intervals by bootstrap over lessons, and what a margin says of them. Knows numbers only.

A figure is a ratio of two sums over units (lessons): what was got, and how many questions there were. A
resample draws whole units, and the same ones for every arm that is compared, so what makes a lesson hard does
not count against an arm. numpy, because a table of a million lines takes a thousand such intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kvnet.experiments.record import Margin

RESAMPLES = 2000
LEVEL = 0.95
# More units than this are put together, every two-thousandth: blocks of units are drawn, not single ones.
MAX_UNITS = 2000
_ALIKE = 1e-9

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over `n` questions in `units` lessons; no interval where there is but one unit."""

    mean: float
    low: float | None
    high: float | None
    n: int
    units: int


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A figure and what each resample makes of it: `draws` [RESAMPLES], NaN where nothing was counted."""

    mean: float
    draws: Numbers
    n: int
    units: int

    def minus(self, other: Drawn) -> Drawn:
        """Paired: both were drawn over the same units."""
        return Drawn(self.mean - other.mean, self.draws - other.draws, self.n, self.units)

    def between(self, floor: Drawn, ceiling: Drawn) -> Drawn:
        """(this - floor) / (ceiling - floor), NaN where the ceiling is not above the floor."""
        means = np.array([self.mean - floor.mean]), np.array([ceiling.mean - floor.mean])
        draws = _ratio(self.draws - floor.draws, ceiling.draws - floor.draws)
        return Drawn(float(_ratio(*means)[0]), draws, self.n, self.units)

    def estimate(self, *, share_between: tuple[float, float] | None = None) -> Estimate | None:
        """With the middle 95 of 100 resamples around it. None where nothing was measured.

        `share_between`: each question gave 0 or 1, and the figure lies within these. Where all lessons gave
        the same, resamples cannot differ; the binomial's exact bound for n alike questions then stands in for
        them, since n alike questions are no certainty.
        """
        if not math.isfinite(self.mean):
            return None
        drawn = self.draws[np.isfinite(self.draws)]
        if self.units < 2 or not len(drawn):
            return Estimate(self.mean, None, None, self.n, self.units)
        drawn.sort()
        tail = round((1 - LEVEL) / 2 * (len(drawn) - 1))
        low, high = float(drawn[tail]), float(drawn[-1 - tail])
        if share_between is not None and drawn[-1] - drawn[0] < _ALIKE:
            room = 1 - ((1 - LEVEL) / 2) ** (1 / self.n)
            low, high = max(share_between[0], low - room), min(share_between[1], high + room)
        return Estimate(self.mean, low, high, self.n, self.units)


def draw(sums: Numbers, counts: Numbers) -> list[Drawn]:
    """Of each column the ratio of its sums: both [units, columns]."""
    return draw_all([(sums, counts)])[0]


def draw_all(samples: Sequence[tuple[Numbers, Numbers]]) -> list[list[Drawn]]:
    """`draw` of many; those with as many units share one product, which is what makes it fast."""
    rows = [_blocked(np.concatenate(pair, axis=1)) for pair in samples]
    totals: list[Numbers] = [np.empty(0)] * len(rows)
    for length in {len(row) for row in rows}:
        alike = [i for i, row in enumerate(rows) if len(row) == length]
        product = _weights(length) @ np.concatenate([rows[i] for i in alike], axis=1)
        widths = np.cumsum([rows[i].shape[1] for i in alike])[:-1]
        for i, part in zip(alike, np.split(product, widths, axis=1), strict=True):
            totals[i] = part
    return [_columns(*pair, total) for pair, total in zip(samples, totals, strict=True)]


def _columns(sums: Numbers, counts: Numbers, totals: Numbers) -> list[Drawn]:
    units, columns = sums.shape
    n = counts.sum(0)
    means, draws = _ratio(sums.sum(0), n), _ratio(totals[:, :columns], totals[:, columns:])
    return [Drawn(float(means[i]), draws[:, i], int(n[i]), units) for i in range(columns)]


@lru_cache(maxsize=8)
def _weights(units: int) -> Numbers:
    """[RESAMPLES, units]: how often each unit is drawn. The same for the same count, so figures repeat."""
    drawn = np.random.default_rng(units).multinomial(units, np.full(units, 1 / units), RESAMPLES)
    return drawn.astype(np.float64)


def _blocked(sums: Numbers) -> Numbers:
    """[units, columns] -> [at most MAX_UNITS, columns]."""
    if len(sums) <= MAX_UNITS:
        return sums
    blocks = np.zeros((MAX_UNITS, sums.shape[1]))
    np.add.at(blocks, np.arange(len(sums)) % MAX_UNITS, sums)
    return blocks


def _ratio(sums: Numbers, counts: Numbers) -> Numbers:
    """Elementwise, NaN where nothing was counted or the divisor is negative."""
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def verdict(difference: Estimate, margin: Margin) -> str:
    """`not worse`, `worse`, or `open` where the interval lies on both sides of the margin.

    `difference` is arm minus the arm that the margin names.
    """
    if difference.low is None or difference.high is None:
        return "open"
    worst, best = (
        (-difference.high, -difference.low) if margin.lower_is_better else (difference.low, difference.high)
    )
    if worst >= -margin.at_most:
        return "not worse"
    return "worse" if best < -margin.at_most else "open"


@dataclass(frozen=True, slots=True)
class Line:
    """y = slope * x + intercept by least squares; `max_residual` in units of y."""

    slope: float
    intercept: float
    max_residual: float
    r2: float


def fit_line(x: Numbers | list[float], y: Numbers | list[float]) -> Line:
    """Raises ValueError for fewer than two different x."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(np.unique(xs)) < 2:
        raise ValueError("a line needs two different x")
    slope, intercept = (float(value) for value in np.polyfit(xs, ys, 1))
    residual = ys - (slope * xs + intercept)
    spread = float(((ys - ys.mean()) ** 2).sum())
    r2 = 1 - float((residual**2).sum()) / spread if spread > 0 else 1.0
    return Line(slope, intercept, float(np.abs(residual).max()), r2)
