"""What `exp` prints for people. Pure; no commands, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvnet.cli.output import printable, table_lines

if TYPE_CHECKING:
    from kvnet.experiments.diff import RunDiff
    from kvnet.experiments.statistics import Estimate
    from kvnet.experiments.table import Row, Table

_SHOWN_ID_CHARS = 12
_SHOWN_VALUE_CHARS = 60


def rows_lines(table: Table, metrics: Sequence[str]) -> list[str]:
    """The rows under their header; nothing without rows."""
    if not table.rows:
        return []
    columns = [*_leading(table), *table.varying, "n", *metrics]
    return table_lines(columns, [_row(table, row, metrics) for row in table.rows])


def comparison_lines(table: Table) -> list[str]:
    """What the margins say, if there are any."""
    from kvnet.experiments.numbers import difference_text, interval_text, number_text

    told = [
        [
            *_start(table, row),
            found.margin.metric,
            found.margin.against,
            f"{difference_text(found.difference.mean)} {interval_text(found.difference)}".strip(),
            number_text(found.margin.at_most),
            found.verdict,
        ]
        for row in table.rows
        for found in row.comparisons
    ]
    columns = [*_leading(table), *table.varying, "metric", "against", "difference", "margin", "verdict"]
    return table_lines(columns, told) if told else []


def failure_lines(table: Table) -> list[str]:
    """Cells that failed, each with its reason."""
    rows = [
        (
            failed.cell.removeprefix("sha256:")[:_SHOWN_ID_CHARS],
            _parameters_text(failed.parameters),
            failed.seed,
            f"{failed.reason} [{failed.code}]",
        )
        for failed in table.failures
    ]
    return table_lines(("failed cell", "parameters", "seed", "reason"), rows) if rows else []


def diff_lines(found: RunDiff, *, everything: bool) -> list[str]:
    """How the runs were made differently, then the figures."""
    from kvnet.experiments.numbers import difference_text, interval_text, number_text

    lines = [
        f"{name}: {printable(str(a))[:_SHOWN_VALUE_CHARS]} -> {printable(str(b))[:_SHOWN_VALUE_CHARS]}"
        for name, (a, b) in found.made.items()
    ]
    shown = [change for change in found.changes if everything or change.differs]
    columns = ("task", "model", "arm", "parameters", "metric", "first", "second", "difference")
    rows = [
        (
            change.task,
            change.model,
            change.arm,
            _parameters_text(change.parameters),
            change.metric,
            number_text(change.first.mean),
            number_text(change.second.mean),
            f"{difference_text(change.difference.mean)} {interval_text(change.difference)}".strip(),
        )
        for change in shown
    ]
    lines += table_lines(columns, rows) if rows else []
    lines.append(
        f"{len(found.changes)} figures are in both runs, {sum(c.differs for c in found.changes)} differ; "
        f"{found.only_first} rows are only in the first, {found.only_second} only in the second"
    )
    return lines


def _row(table: Table, row: Row, metrics: Sequence[str]) -> list[object]:
    n = max((at.n for at in row.values.values()), default=0)
    return [*_start(table, row), n, *(_estimate_text(row.values.get(metric)) for metric in metrics)]


def _start(table: Table, row: Row) -> list[object]:
    from kvnet.experiments.table import value_text

    told = [getattr(row, name) for name in _leading(table)]
    return [*told, *(value_text(row.parameters.get(name)) for name in table.varying)]


def _leading(table: Table) -> list[str]:
    names = ("run", "task", "model", "source")
    return [name for name in names if len({getattr(row, name) for row in table.rows}) > 1] + ["arm"]


def _estimate_text(at: Estimate | None) -> str:
    from kvnet.experiments.numbers import interval_text, number_text

    return "" if at is None else f"{number_text(at.mean)} {interval_text(at)}".strip()


def _parameters_text(parameters: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())
