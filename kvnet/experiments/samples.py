"""What was measured, summed by arm and lesson: the numbers behind a table. Reads logs through DuckDB.

Knows no intervals. Seeds are pooled, and a lesson of one seed is another than that of the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvnet.errors import MalformedRun
from kvnet.experiments.record import Manifest
from kvnet.experiments.sql import connect
from kvnet.experiments.statistics import Numbers

if TYPE_CHECKING:
    import duckdb

Indices = NDArray[np.int64]

_ROW = "run, protocol, task, model, source, arm, parameters"
_UNIT = "run, cell, task, model, seed, lesson"
_SUMS = """
CREATE TABLE sums AS
SELECT {row}, cell, seed, lesson, {sums}
FROM (SELECT *, json_transform("values", '{fields}') AS x FROM measurements WHERE lesson IS NOT NULL)
GROUP BY ALL
"""
# A line without a lesson is a unit of its own.
_LOOSE = """
INSERT INTO sums
SELECT {row}, cell, seed, -row_number() OVER (), {sums}
FROM (SELECT *, json_transform("values", '{fields}') AS x FROM measurements WHERE lesson IS NULL)
"""
_KEYS = """
CREATE TABLE {name} AS
SELECT *, row_number() OVER (ORDER BY {key}) - 1 AS {name}_id FROM (SELECT DISTINCT {key} FROM sums)
"""
_ENTRIES = """
SELECT arms_id, units_id, COLUMNS('^[sc][0-9]+$')
FROM sums JOIN arms USING ({row}) JOIN units USING ({unit}) ORDER BY arms_id, units_id
"""


@dataclass(frozen=True, slots=True)
class FailedCell:
    """A cell that failed and was not repeated with success."""

    run: str
    cell: str
    parameters: Mapping[str, Any]
    seed: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Sums by row and unit. A unit is a lesson of a cell.

    `sums` and `counts`: [entries, metrics]; `row_of`, `unit_of`: [entries], sorted by row.
    """

    keys: list[tuple[str, ...]]  # of each row: run protocol task model source arm parameters
    metrics: list[str]
    row_of: Indices
    unit_of: Indices
    sums: Numbers
    counts: Numbers
    by_arm: dict[str, tuple[Numbers, Numbers]]  # arm -> sums, counts: [all units, metrics]
    arms_of_cell: list[tuple[str, str, list[str]]]
    failures: tuple[FailedCell, ...]
    closed: dict[str, int]
    summaries: dict[str, Any]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Samples:
        """Two passes over the logs: what there is, and the sums."""
        database = connect(paths)
        metrics = _sum_up(database)
        columns = range(len(metrics))
        for name, key in (("arms", _ROW), ("units", _UNIT)):
            database.execute(_KEYS.format(name=name, key=key))
        keys = database.execute("SELECT * EXCLUDE arms_id FROM arms ORDER BY arms_id").fetchall()
        found = database.execute(_ENTRIES.format(row=_ROW, unit=_UNIT)).fetchnumpy()
        row_of, unit_of = found["arms_id"].astype(np.int64), found["units_id"].astype(np.int64)
        sums, counts = (
            np.stack([np.ma.filled(found[f"{kind}{i}"], 0) for i in columns], axis=1).astype(np.float64)
            if metrics
            else np.zeros((len(row_of), 0))
            for kind in "sc"
        )
        failed = database.execute(
            "SELECT run, cell, parameters, seed, code, reason FROM cells WHERE status = 'failed' ORDER BY ALL"
        ).fetchall()
        return cls(
            keys=keys,
            metrics=metrics,
            row_of=row_of,
            unit_of=unit_of,
            sums=sums,
            counts=counts,
            by_arm=_by_arm([key[5] for key in keys], row_of, unit_of, sums, counts),
            arms_of_cell=database.execute(
                "SELECT run, cell, list(DISTINCT arm) FROM sums WHERE cell <> '' GROUP BY ALL"
            ).fetchall(),
            failures=tuple(FailedCell(r, c, json.loads(p), s, k, why) for r, c, p, s, k, why in failed),
            closed=dict(
                database.execute(
                    "SELECT run, count(*) FROM cells WHERE status = 'done' GROUP BY run"
                ).fetchall()
            ),
            summaries={
                run: json.loads(values)
                for run, values in database.execute('SELECT run, "values" FROM summaries').fetchall()
            },
        )

    def refuse_missing_controls(self, manifests: Mapping[str, Manifest]) -> None:
        """Raises MalformedRun."""
        for run, cell, arms in self.arms_of_cell:
            missing = sorted(set(manifests[run].controls) - set(arms))
            if missing:
                raise MalformedRun(
                    f"{run}: cell {cell:.19} has no {', '.join(missing)}; without this control its figures "
                    "say nothing, so none are shown"
                )

    def of_row(self, index: int) -> tuple[Indices, Numbers, Numbers]:
        """(units, sums [units, metrics], counts)."""
        begin, end = np.searchsorted(self.row_of, [index, index + 1])
        return self.unit_of[begin:end], self.sums[begin:end], self.counts[begin:end]

    def of_arm(self, arm: str, units: Indices) -> tuple[Numbers, Numbers]:
        """(sums, counts) of an arm in these units, of any source and parameters; zeros where it is not."""
        if arm not in self.by_arm:
            nothing = np.zeros((len(units), len(self.metrics)))
            return nothing, nothing
        sums, counts = self.by_arm[arm]
        return sums[units], counts[units]


def _sum_up(database: duckdb.DuckDBPyConnection) -> list[str]:
    """Make the table `sums`; returns the metrics, whose columns are s0, c0, s1, c1, ..."""
    found = database.execute("SELECT DISTINCT unnest(metrics), is_loose FROM rare").fetchall()
    metrics = sorted({str(name) for name, _ in found})
    quoted = ['"' + name.replace('"', '""') + '"' for name in metrics]
    fields = ", ".join(f'{json.dumps(name)}: "DOUBLE"' for name in metrics)
    fields = "{" + fields.replace("'", "''") + "}"
    columns = [
        f"coalesce(sum(x.{name}), 0) AS s{i}, count(x.{name}) AS c{i}" for i, name in enumerate(quoted)
    ]
    sums = {"row": _ROW, "fields": fields, "sums": ", ".join(columns) or "count(*) AS n"}
    database.execute(_SUMS.format(**sums))
    if any(loose for _, loose in found):
        singles = [f"coalesce(x.{name}, 0), (x.{name} IS NOT NULL)::BIGINT" for name in quoted]
        database.execute(_LOOSE.format(**{**sums, "sums": ", ".join(singles)}))
    return metrics


def _by_arm(
    arms: Sequence[str], row_of: Indices, unit_of: Indices, sums: Numbers, counts: Numbers
) -> dict[str, tuple[Numbers, Numbers]]:
    """Of each arm that others are compared with: [all units, metrics], twice."""
    units = int(unit_of.max()) + 1 if len(unit_of) else 0
    found: dict[str, tuple[Numbers, Numbers]] = {}
    arm_of_entry = np.asarray(arms, dtype=object)[row_of] if len(row_of) else np.asarray([], dtype=object)
    for arm in set(arms):
        mine = arm_of_entry == arm
        both = tuple(np.zeros((units, sums.shape[1])) for _ in range(2))
        for into, values in zip(both, (sums, counts), strict=True):
            np.add.at(into, unit_of[mine], values[mine])
        found[arm] = (both[0], both[1])
    return found
