"""What differs between two runs: how they were made, and every figure that both have.

Knows tables only. The interval of a difference takes the runs as independent, from both intervals (MOVER), so
it is wide rather than narrow where both asked the same lessons.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvnet.experiments.record import Manifest
from kvnet.experiments.statistics import Estimate
from kvnet.experiments.table import Row, make_table

_OF_ITSELF = ("run", "created", "command", "name")  # always another, and says nothing of the figures


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of both runs. `difference` is the second minus the first; `differs` if 0 lies outside."""

    task: str
    model: str
    source: str
    arm: str
    parameters: Mapping[str, Any]
    metric: str
    first: Estimate
    second: Estimate
    difference: Estimate
    differs: bool


@dataclass(frozen=True, slots=True)
class RunDiff:
    """`made` has [first, second] by field of the manifest; rows that only one run has are counted."""

    runs: tuple[str, str]
    made: Mapping[str, tuple[Any, Any]]
    changes: tuple[Change, ...]
    only_first: int
    only_second: int


def diff_runs(first: Path, second: Path) -> RunDiff:
    """Raises what `make_table` raises."""
    a, b = make_table([first]), make_table([second])
    of_a, of_b = ({_key(row): row for row in table.rows} for table in (a, b))
    changes = [change for key in of_a if key in of_b for change in _changes(of_a[key], of_b[key])]
    return RunDiff(
        runs=(first.name, second.name),
        made=dict(_made(a.runs[0], b.runs[0])),
        changes=tuple(changes),
        only_first=len(of_a.keys() - of_b.keys()),
        only_second=len(of_b.keys() - of_a.keys()),
    )


def _key(row: Row) -> tuple[str, ...]:
    parameters = json.dumps(row.parameters, sort_keys=True)
    return (row.protocol, row.task, row.model, row.source, row.arm, parameters)


def _changes(a: Row, b: Row) -> Iterator[Change]:
    for metric in a.values.keys() & b.values.keys():
        first, second = a.values[metric], b.values[metric]
        difference = _difference(first, second)
        apart = difference.low is not None and difference.high is not None
        differs = apart and not (difference.low or 0) <= 0 <= (difference.high or 0)
        yield Change(
            task=a.task,
            model=a.model,
            source=a.source,
            arm=a.arm,
            parameters=a.parameters,
            metric=metric,
            first=first,
            second=second,
            difference=difference,
            differs=differs if apart else first.mean != second.mean,
        )


def _difference(a: Estimate, b: Estimate) -> Estimate:
    mean, n, units = b.mean - a.mean, min(a.n, b.n), min(a.units, b.units)
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(mean, None, None, n, units)
    down = math.hypot(b.mean - b.low, a.high - a.mean)
    up = math.hypot(b.high - b.mean, a.mean - a.low)
    return Estimate(mean, mean - down, mean + up, n, units)


def _made(a: Manifest, b: Manifest) -> Iterator[tuple[str, tuple[Any, Any]]]:
    first, second = asdict(a), asdict(b)
    for name in first:
        if name not in _OF_ITSELF and first[name] != second[name]:
            yield name, (first[name], second[name])
