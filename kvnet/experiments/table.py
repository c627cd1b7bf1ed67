"""The table of runs as plain data: every figure with n and its interval, controls among the rows.

All of it is computed from the logs. Knows no terminals and no pages. Raises MalformedRun for a run whose
closed cells lack a control: without them a figure says nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvnet.experiments.folder import RunFolder
from kvnet.experiments.record import Manifest, Margin
from kvnet.experiments.samples import FailedCell, Indices, Samples
from kvnet.experiments.statistics import Drawn, Estimate, draw, draw_all, verdict

RECALL, FLOOR, CEILING = "right", "none", "text"
GAP = "gap_recovered"
_SHARE, _DIFFERENCE, _GAP = (0.0, 1.0), (-1.0, 1.0), (-math.inf, math.inf)
_FIRST = (RECALL, GAP, "kl", "top1", "nll_gap")
_AT_ONCE = 64  # rows whose resamples are held in memory together


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row against the arm of a margin, in the same lessons: `difference` is row minus that arm."""

    margin: Margin
    difference: Estimate
    verdict: str  # not worse, worse or open


@dataclass(frozen=True, slots=True)
class Row:
    """One arm under one set of parameters, seeds pooled. `values` by metric; `gap_recovered` is derived."""

    run: str
    protocol: str
    task: str
    model: str
    source: str
    arm: str
    is_control: bool
    parameters: Mapping[str, Any]
    values: Mapping[str, Estimate]
    comparisons: tuple[Comparison, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """What runs say. `notes` are sentences: what was torn, what is not there yet."""

    runs: tuple[Manifest, ...]
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    varying: tuple[str, ...]  # parameters that differ between rows
    fixed: Mapping[str, Any]
    failures: tuple[FailedCell, ...]
    notes: tuple[str, ...]
    summaries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # run -> its last summary


def make_table(paths: Sequence[Path]) -> Table:
    """The table of one or several runs."""
    folders = [RunFolder.open(path) for path in paths]
    manifests = {folder.path.name: folder.manifest for folder in folders}
    samples = Samples.read(paths)
    samples.refuse_missing_controls(manifests)
    others = _Others(samples)
    rows = tuple(
        _row(samples, others, index, drawn, manifests)
        for begin in range(0, len(samples.keys), _AT_ONCE)
        for index, drawn in enumerate(_drawn(samples, begin), begin)
    )
    names = sorted({name for row in rows for name in row.parameters})
    told = {name: {value_text(row.parameters.get(name)) for row in rows} for name in names}
    varying = tuple(name for name in names if len(told[name]) > 1)
    first = rows[0].parameters if rows else {}
    return Table(
        runs=tuple(manifests.values()),
        rows=tuple(sorted(rows, key=lambda row: _order(row, varying))),
        metrics=tuple(sorted({name for row in rows for name in row.values}, key=_metric_order)),
        varying=varying,
        fixed={name: first[name] for name in names if name not in varying},
        failures=samples.failures,
        notes=tuple(note for folder in folders for note in _notes(folder, samples)),
        summaries=samples.summaries,
    )


class _Others:
    """What a row is compared with: another arm in the row's units. Rows of one cell ask for the same."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._known: dict[tuple[str, int, bytes], Drawn] = {}

    def of(self, arm: str, column: int, units: Indices) -> Drawn:
        """Its draws, with the same resamples as the row's own."""
        key = (arm, column, units.tobytes())
        if key not in self._known:
            sums, counts = self._samples.of_arm(arm, units)
            (self._known[key],) = draw(sums[:, column : column + 1], counts[:, column : column + 1])
        return self._known[key]


def _drawn(samples: Samples, begin: int) -> list[list[Drawn]]:
    indices = range(begin, min(begin + _AT_ONCE, len(samples.keys)))
    return draw_all([samples.of_row(index)[1:] for index in indices])


def _row(
    samples: Samples, others: _Others, index: int, columns: list[Drawn], manifests: Mapping[str, Manifest]
) -> Row:
    run, protocol, task, model, source, arm, parameters = samples.keys[index]
    manifest = manifests[run]
    units, _, _ = samples.of_row(index)
    drawn = dict(zip(samples.metrics, columns, strict=True))
    values = {
        metric: made
        for metric, mine in drawn.items()
        if (made := mine.estimate(share_between=_SHARE if metric == RECALL else None))
    }
    comparisons = []
    for margin in manifest.margins:
        if margin.against != arm and margin.metric in values:
            other = others.of(margin.against, samples.metrics.index(margin.metric), units)
            difference = (
                drawn[margin.metric]
                .minus(other)
                .estimate(share_between=_DIFFERENCE if margin.metric == RECALL else None)
            )
            if difference is not None:
                comparisons.append(Comparison(margin, difference, verdict(difference, margin)))
    if RECALL in values and arm not in (FLOOR, CEILING):
        column = samples.metrics.index(RECALL)
        floor, ceiling = (others.of(name, column, units) for name in (FLOOR, CEILING))
        gap = drawn[RECALL].between(floor, ceiling).estimate(share_between=_GAP)
        values |= {GAP: gap} if gap is not None else {}
    return Row(
        run=run,
        protocol=protocol,
        task=task,
        model=model,
        source=source,
        arm=arm,
        is_control=arm in manifest.controls,
        parameters=json.loads(parameters),
        values=values,
        comparisons=tuple(comparisons),
    )


def _metric_order(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _order(row: Row, varying: Sequence[str]) -> tuple[Any, ...]:
    """By run, task and model, then by parameters as numbers where they are; controls after the others."""
    parameters = tuple(_sortable(row.parameters.get(name)) for name in varying)
    return (row.run, row.task, row.model, row.is_control, parameters, row.source, row.arm)


def _sortable(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, value_text(value))


def value_text(value: Any) -> str:
    """A parameter as people write it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _notes(folder: RunFolder, samples: Samples) -> list[str]:
    notes = [folder.torn] if folder.torn else []
    run, total = folder.path.name, folder.manifest.total_cells
    failed = sum(cell.run == run for cell in samples.failures)
    missing = total - samples.closed.get(run, 0) - failed
    if missing > 0:
        notes.append(
            f"{run}: {missing} of {total} cells are not measured yet; `kvnet exp run --resume {run}` goes on"
        )
    return notes
