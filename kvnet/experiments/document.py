"""Markdown pages whose tables are computed from runs. Knows the table, not how anything was measured.

A table stands between two marks, of which the first says what it shows:

    <!-- table: fraction arm=first,last rows=arm,fraction columns=model metric=right -->
    <!-- /table -->

The word is a recipe. `rows` names what tells rows apart, `columns` (may be left out) what is laid beside each
other, `metric` what is shown; any other key keeps the rows with one of its values. `verdict` as a metric is
what the run's margin says. A table that ends in `unchecked` holds figures of a machine, such as times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from kvnet.errors import RequestError
from kvnet.experiments.table import Row, Table, value_text

VERDICT: Final = "verdict"
UNCHECKED: Final = "unchecked"
_TABLE: Final = re.compile(
    r"^<!-- table: (?P<spec>.*?) -->\n(?P<body>.*?)^<!-- /table -->$", re.MULTILINE | re.DOTALL
)
_FIGURE: Final = re.compile(r"(-?[\d.e-]+) \[(-?[\d.e-]+), (-?[\d.e-]+)\]$")
_MEAN: Final = re.compile(r"-?[\d.]+(e-?\d+)?")
_RESERVED: Final = ("rows", "columns", "metric")
_FIELDS: Final = ("arm", "task", "model", "source")
_ROUNDING: Final = 0.005  # of a figure, as three digits leave it
_LEAST: Final = 1e-4  # what is smaller is shown as 0

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """What one table shows."""

    recipe: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    wanted: Mapping[str, tuple[str, ...]]
    is_checked: bool

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Raises RequestError."""
        recipe, *words = text.split()
        is_checked = UNCHECKED not in words
        pairs = [word.partition("=") for word in words if word != UNCHECKED]
        told = {key: tuple(value.split(",")) for key, equals, value in pairs if equals and value}
        if len(told) != len(pairs) or not {"rows", "metric"} <= told.keys():
            raise RequestError(
                f"table {text!r:.100}: wanted RECIPE rows=… metric=…, and key=value,value to choose rows"
            )
        wanted = {key: values for key, values in told.items() if key not in _RESERVED}
        return cls(recipe, told["rows"], told.get("columns", ()), told["metric"], wanted, is_checked)


def recipes_in(page: str) -> tuple[str, ...]:
    """Whose runs the page's tables show, in its order."""
    return tuple(dict.fromkeys(Spec.parse(found["spec"]).recipe for found in _TABLE.finditer(page)))


def fill(page: str, table_of: Callable[[str], Table | None]) -> str:
    """The page with every table computed anew; one stays as it is where there is no run of its recipe."""

    def made(found: re.Match[str]) -> str:
        spec = Spec.parse(found["spec"])
        table = table_of(spec.recipe)
        body = found["body"] if table is None else "\n".join(render(spec, table)) + "\n"
        return f"<!-- table: {found['spec']} -->\n{body}<!-- /table -->"

    return _TABLE.sub(made, page)


def differences(page: str, table_of: Callable[[str], Table | None]) -> Iterator[str]:
    """One sentence for every figure of the page that a run does not bear out.

    A figure with an interval is borne out by one within it; one without must be the same.
    """
    for found in _TABLE.finditer(page):
        spec = Spec.parse(found["spec"])
        table = table_of(spec.recipe)
        if table is None or not spec.is_checked:
            continue
        both = (found["body"].splitlines(), render(spec, table))
        stated, made = (_cells(lines, len(spec.rows)) for lines in both)
        where = f"{spec.recipe} ({', '.join(spec.rows)})"
        for key in [*stated, *(key for key in made if key not in stated)]:
            told, now = stated.get(key, "nothing"), made.get(key, "nothing")
            if not _bears_out(told, now):
                yield f"{where}, {' / '.join(filter(None, key))}: the page says {told}, the run {now}"


def render(spec: Spec, table: Table) -> list[str]:
    """Markdown lines, and below them what n is and the command. Raises RequestError for rows that mix."""
    told = _chosen(spec, table)
    order = _order(spec, table)
    beside = sorted({name for of in told.values() for name in of}, key=partial(order, spec.columns))
    figures = [(name, metric) for name in beside for metric in spec.metrics]
    heads = [*spec.rows, *(" ".join((*name, *_shown(spec, metric))) for name, metric in figures)]
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines += [
        _line([*at, *(_text(told[at].get(name), metric) for name, metric in figures)])
        for at in sorted(told, key=partial(order, spec.rows))
    ]
    return [*lines, "", _caption(spec, [row for of in told.values() for row in of.values()])]


def _chosen(spec: Spec, table: Table) -> dict[Key, dict[Key, Row]]:
    """What tells rows apart -> what is laid beside each other -> row."""
    told: dict[Key, dict[Key, Row]] = {}
    for row in table.rows:
        if any(_value(row, key) not in values for key, values in spec.wanted.items()):
            continue
        at, name = (tuple(_value(row, key) for key in keys) for keys in (spec.rows, spec.columns))
        if told.setdefault(at, {}).setdefault(name, row) is not row:
            words = " ".join((*at, *name))
            raise RequestError(
                f"table of {spec.recipe}: two rows are {words}; name in rows what tells them apart"
            )
    if not told:
        raise RequestError(
            f"table of {spec.recipe}: no row of the run is asked for; look at `kvnet exp table`"
        )
    return told


def _shown(spec: Spec, metric: str) -> tuple[str, ...]:
    return () if spec.columns and len(spec.metrics) == 1 else (metric,)


def _order(spec: Spec, table: Table) -> Callable[[Sequence[str], Key], list[tuple[float, float, str]]]:
    """Words in the order asked for, else controls last; numbers by size."""
    is_control = {row.arm: row.is_control for row in table.rows}

    def one(key: str, value: str) -> tuple[float, float, str]:
        asked = spec.wanted.get(key, ())
        place = asked.index(value) if value in asked else float(key == "arm" and is_control[value])
        try:
            return place, float(value), ""
        except ValueError:
            return place, float("inf"), value

    return lambda keys, values: [one(key, value) for key, value in zip(keys, values, strict=True)]


def _value(row: Row, key: str) -> str:
    return str(getattr(row, key)) if key in _FIELDS else value_text(row.parameters.get(key))


def _text(row: Row | None, metric: str) -> str:
    if row is None:
        return ""
    if metric == VERDICT:
        return ", ".join(f"{found.verdict} ({_number(found.margin.at_most)})" for found in row.comparisons)
    at = row.values.get(metric)
    if at is None:
        return ""
    if at.low is None or at.high is None or at.low == at.mean == at.high:
        return _number(at.mean)
    return f"{_number(at.mean)} [{_number(at.low)}, {_number(at.high)}]"


def _number(value: float) -> str:
    """Three digits that count: 0.997, 12.3, 143552."""
    if abs(value) < _LEAST:
        return "0"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:.0f}"
    return f"{round(value, 4):.3g}"


def _caption(spec: Spec, rows: Sequence[Row]) -> str:
    shown = [at for row in rows for name, at in row.values.items() if name in spec.metrics]
    counts, units = sorted({at.n for at in shown}), sorted({at.units for at in shown})
    told = [f"{key} {v[0]}" for key, v in spec.wanted.items() if key != "arm" and len(v) == 1]
    if spec.columns and len(spec.metrics) == 1:
        told.append(f"figures are `{spec.metrics[0]}`")
    if units[-1:] > [1]:
        told.append(f"n = {_span(counts)} a figure, in {_span(units)} texts; brackets are 95 % intervals")
    told.append(f"`kvnet exp run {spec.recipe}`")
    return "; ".join(told) + "."


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cells(lines: Sequence[str], num_keys: int) -> dict[tuple[str, ...], str]:
    """(what tells the row apart, the column) -> figure, of a Markdown table."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" |")] for line in lines if line[:1] == "|"]
    return {
        (*row[:num_keys], head): cell
        for row in rows[2:]
        for head, cell in zip(rows[0][num_keys:], row[num_keys:], strict=False)
    }


def _bears_out(stated: str, now: str) -> bool:
    interval, figure = _FIGURE.match(stated), _MEAN.match(now)
    if interval is None or figure is None:
        return stated == now
    low, high, mean = float(interval[2]), float(interval[3]), float(figure[0])
    room = _ROUNDING * max(abs(low), abs(high)) + _LEAST
    return low - room <= mean <= high + room
