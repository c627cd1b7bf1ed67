"""Run folders as tables of DuckDB, which reads their logs itself: nothing is kept anywhere else.

`measurements` has the lines that count (record.Line), one row each, with `values` as JSON; `marks` the
same with one row a number; `runs` the manifests; `cells` what became of each cell. Knows no statistics.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvnet.errors import MalformedRun, RequestError
from kvnet.experiments.folder import EVENTS, MANIFEST, RunFolder
from kvnet.experiments.record import SCHEMA_VERSION
from kvnet.extras import require_experiments_extra

if TYPE_CHECKING:
    import duckdb

_COLUMNS = {
    **{
        name: "VARCHAR"
        for name in ("ts", "run", "kind", "cell", "protocol", "arm", "task", "model", "source")
    },
    **{name: "BIGINT" for name in ("v", "session", "seed", "lesson", "question")},
    **{name: "VARCHAR" for name in ("reason", "code", "status")},
    "seconds": "DOUBLE",
    "parameters": "JSON",
    "values": "JSON",
}
# A summary's values are of any form; those of a measurement are numbers by name.
_LINES = """
CREATE VIEW lines AS
SELECT * REPLACE (coalesce(parameters, '{{}}') AS parameters),
       parse_path(filename)[-2] AS folder
FROM read_json({files}, format = 'newline_delimited', columns = {columns}, ignore_errors = true,
               filename = true, maximum_object_size = 16777216)
"""
# One pass for what is rare: what ends a cell or a run, what is no line of this schema, and of measurements
# which cells, metrics and sessions there are.
_RARE = """
CREATE TABLE rare AS
SELECT DISTINCT folder, v, session, cell, kind, reason, code, seconds,
    CASE WHEN kind = 'measurement' THEN json_keys("values") END AS metrics,
    CASE WHEN kind = 'measurement' THEN lesson IS NULL END AS is_loose,
    CASE WHEN kind <> 'measurement' THEN seed END AS seed,
    CASE WHEN kind <> 'measurement' THEN parameters END AS parameters,
    CASE WHEN kind <> 'measurement' THEN ts END AS ts,
    CASE WHEN kind <> 'measurement' THEN "values" END AS "values"
FROM lines
"""
_TABLES = """
CREATE VIEW cells AS
SELECT folder AS run, cell,
       arg_max(CASE kind WHEN 'cell' THEN 'done' ELSE 'failed' END, (kind = 'cell', ts)) AS status,
       arg_max(coalesce(reason, ''), (kind = 'cell', ts)) AS reason,
       arg_max(coalesce(code, ''), (kind = 'cell', ts)) AS code,
       arg_max(parameters, (kind = 'cell', ts)) AS parameters, any_value(seed) AS seed,
       arg_max(seconds, (kind = 'cell', ts)) AS seconds
FROM rare WHERE kind IN ('cell', 'failure') GROUP BY ALL;

CREATE VIEW summaries AS
SELECT folder AS run, arg_max("values", (session, ts)) AS "values" FROM rare
WHERE kind = 'summary' GROUP BY ALL;

CREATE VIEW measurements AS
SELECT folder AS run, cell, protocol, arm, task, model, source, parameters, seed, lesson, question, ts,
       "values"
FROM lines
WHERE kind = 'measurement' AND (cell = '' OR (folder, session, cell) IN (
    SELECT (folder, session, cell) FROM rare WHERE kind = 'cell'));

CREATE VIEW marks AS
SELECT * EXCLUDE ("values", entry), entry.key AS metric, entry.value AS value
FROM (SELECT *, unnest(map_entries(CAST("values" AS MAP(VARCHAR, DOUBLE)))) AS entry FROM measurements);

CREATE VIEW runs AS
SELECT * FROM read_json({manifests}, format = 'auto', union_by_name = true, maximum_depth = 1);
"""


def connect(runs: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """A database in memory with the runs' tables. Raises MalformedRun, MissingExtra, UnknownRun."""
    require_experiments_extra()
    import duckdb

    torn = [bool(RunFolder.open(path).torn) for path in runs]
    database = duckdb.connect(config={"threads": max(1, os.cpu_count() or 1)})
    files = _list([path / EVENTS for path in runs])
    columns = "{" + ", ".join(f"'{name}': '{kind}'" for name, kind in _COLUMNS.items()) + "}"
    database.execute(_LINES.format(files=files, columns=columns))
    database.execute(_RARE)
    _refuse_what_is_no_line(database, runs, torn)
    database.execute(_TABLES.format(manifests=_list([path / MANIFEST for path in runs])))
    return database


def query(runs: Sequence[Path], sql: str) -> tuple[list[str], list[tuple[object, ...]]]:
    """(column names, rows) of a query over the tables above. Raises RequestError for one that is wrong."""
    database = connect(runs)
    import duckdb

    try:
        found = database.execute(sql)
        return [column[0] for column in found.description or ()], found.fetchall()
    except duckdb.Error as exc:
        first = str(exc).strip().splitlines()[0]
        raise RequestError(
            f"sql: {first}; tables are measurements, marks, cells, runs and lines (DESCRIBE shows columns)"
        ) from exc


def _refuse_what_is_no_line(
    database: duckdb.DuckDBPyConnection, runs: Sequence[Path], torn: Sequence[bool]
) -> None:
    """DuckDB gives a row of nulls for what it cannot read: one for a torn end, and no more."""
    counted = database.execute(
        "SELECT count(*) FILTER (v IS NULL), count(*) FILTER (v <> ?) FROM rare", [SCHEMA_VERSION]
    ).fetchone()
    unread, foreign = counted or (0, 0)
    if unread > sum(torn) or foreign:
        _say_which_line(runs)


def _say_which_line(runs: Sequence[Path]) -> None:
    """Read strictly, line by line, up to the one that is wrong. Raises MalformedRun."""
    for path in runs:
        for _ in RunFolder.open(path).lines():
            pass
    raise MalformedRun(f"{', '.join(path.name for path in runs)}: a line cannot be read; nothing is shown")


def _list(paths: Sequence[Path]) -> str:
    quoted = (str(path.absolute()).replace("'", "''") for path in paths)
    return "[" + ", ".join(f"'{path}'" for path in quoted) + "]"
