"""A run for other tools: Parquet with one row a number, or a notebook that begins where `table` ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvnet.errors import RequestError
from kvnet.experiments.sql import connect
from kvnet.extras import require_experiments_extra

_SETUP = """\
from pathlib import Path

from kvnet.experiments.plot import make_figures
from kvnet.experiments.sql import connect
from kvnet.experiments.table import make_table

runs = {runs}
table = make_table([Path(run) for run in runs])"""
_TABLE = """\
for row in table.rows:
    told = {name: (round(at.mean, 4), at.low, at.high, at.n) for name, at in row.values.items()}
    print(row.arm, dict(row.parameters), told)"""
_FIGURES = """\
from IPython.display import SVG, display

for figure in make_figures(table):
    display(SVG(figure.svg()))
    print(figure.caption, "|", figure.command)"""
_SQL = """\
database = connect([Path(run) for run in runs])
database.sql("SELECT arm, metric, avg(value), count(*) FROM marks GROUP BY ALL ORDER BY ALL").show()"""


def write_parquet(runs: Sequence[Path], target: Path) -> int:
    """The view `marks`, zstd. Returns its rows. Raises RequestError for a file that cannot be written."""
    _refuse_existing(target)
    database = connect(runs)
    import duckdb

    path = str(target).replace("'", "''")
    try:
        done = database.execute(f"COPY (FROM marks) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
    except duckdb.Error as exc:
        raise RequestError(f"{target}: cannot be written ({str(exc).splitlines()[0]})") from exc
    (rows,) = done.fetchone() or (0,)
    return int(rows)


def write_notebook(runs: Sequence[Path], target: Path) -> None:
    """A notebook that reads the runs' logs when it is run. Raises RequestError, MissingExtra."""
    _refuse_existing(target)
    require_experiments_extra()
    import nbformat

    cell: Any = nbformat.v4
    named = [str(run.absolute()) for run in runs]
    title = ", ".join(run.name for run in runs)
    codes = (_SETUP.replace("{runs}", repr(named)), _TABLE, _FIGURES, _SQL)
    cells: list[Any] = [cell.new_markdown_cell(f"# {title}"), *(cell.new_code_cell(code) for code in codes)]
    for place, made in enumerate(cells):
        made["id"] = f"cell-{place}"  # nbformat draws them at random
    notebook = cell.new_notebook(cells=cells)
    try:
        target.write_text(str(cell.nbjson.writes(notebook)), encoding="utf-8")
    except OSError as exc:
        raise RequestError(f"{target}: cannot be written ({exc.strerror})") from exc


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise RequestError(f"{target}: is there already; name a new file")
