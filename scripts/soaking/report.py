"""The figures of a soak and its JSON report. Pure, but for what the machine is."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

WARM_UP_SHARE: Final = 0.3  # of the samples; not counted as growth
SHORTEST_SLOPE_S: Final = 120.0
_VERSIONS: Final = ("kvnet", "grpcio", "cryptography", "pynacl", "torch", "transformers")


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of them do not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def growth_per_h(samples: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope per hour of (seconds, value) after warm-up; None where the time is too short."""
    warm = samples[int(len(samples) * WARM_UP_SHARE) :]
    if len(warm) < 2 or warm[-1][0] - warm[0][0] < SHORTEST_SLOPE_S:
        return None
    mean_t = sum(t for t, _ in warm) / len(warm)
    mean_v = sum(v for _, v in warm) / len(warm)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in warm) / sum((t - mean_t) ** 2 for t, _ in warm)
    return slope * 3600


def rounded(value: float | None, digits: int = 3) -> float | None:
    """For a report; None stays None."""
    return None if value is None else round(value, digits)


def machine() -> dict[str, Any]:
    """What the run was made on."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
    versions |= {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    return {"cores": os.cpu_count(), "system": platform.release(), "versions": versions}
