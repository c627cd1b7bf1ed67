"""Figures of a table: each metric over what varies, with intervals, controls in grey beside the rest.

Knows matplotlib, and nothing of logs or pages. A figure carries the command that makes it again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvnet.experiments.statistics import Estimate
from kvnet.experiments.table import Row, Table, value_text

# Told apart by people who see colours differently (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#8C564B")
_GREY = "#6b7280"
_DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_MIN_POINTS = 3
_MAX_LABELS = 40


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one task and model. `figure` is matplotlib's."""

    name: str
    title: str
    caption: str
    command: str
    figure: Any

    def svg(self) -> str:
        """Without XML's head, ready to stand in a page; no time stamp, so that it repeats."""
        out = io.StringIO()
        self.figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")
        return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]

    def save(self, folder: Path) -> Path:
        """A PNG in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.png"
        self.figure.savefig(path, dpi=150, bbox_inches="tight")
        return path


def make_figures(table: Table, metrics: Sequence[str] = ()) -> list[Figure]:
    """A figure for each metric, task and model of which there is something to compare."""
    found = []
    for run, task, model in dict.fromkeys((row.run, row.task, row.model) for row in table.rows):
        rows = [row for row in table.rows if (row.run, row.task, row.model) == (run, task, model)]
        for metric in metrics or table.metrics:
            shown = [row for row in rows if metric in row.values]
            found += [
                _figure(table, metric, part, numeric, is_first=place == 0)
                for place, (numeric, part) in enumerate(_parts(table, shown))
                if len({(at.mean, at.low, at.high) for at in (row.values[metric] for row in part)}) > 1
            ]
    return found


def _parts(table: Table, rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """(the axis or nothing, rows): arms along one parameter each, then the others; controls in all."""
    controls = [row for row in rows if row.is_control]
    rest = [row for row in rows if not row.is_control]
    while True:
        numeric = _numeric_axis(table, rest)
        along = [row for row in rest if not numeric or numeric in row.parameters]
        yield numeric, [row for row in rows if row in along or row in controls]
        rest = [row for row in rest if row not in along]
        if not rest:
            return


def _figure(table: Table, metric: str, rows: Sequence[Row], numeric: str, *, is_first: bool) -> Figure:
    run, task, model = rows[0].run, rows[0].task, rows[0].model
    figure, axes = _new_figure()
    if numeric:
        _draw_lines(axes, rows, metric, numeric, table)
        axes.set_xlabel(numeric)
        axes.set_ylabel(metric)
    else:
        _draw_dots(figure, axes, rows[:_MAX_LABELS], metric, table)
        axes.set_xlabel(metric)
    n = sorted({row.values[metric].n for row in rows})
    counted = f"n {n[0]}" if len(n) == 1 else f"n {n[0]} to {n[-1]}"
    has_intervals = any(row.values[metric].low is not None for row in rows)
    told = "bars" if not numeric else "bands"
    interval = f", {told}: 95 % bootstrap over lessons" if has_intervals else ""
    left_out = (
        f", the first {_MAX_LABELS} of {len(rows)} rows" if not numeric and len(rows) > _MAX_LABELS else ""
    )
    words = (metric, task, model, "" if is_first else f"by {numeric or 'arm'}")
    named = " · ".join(word for word in words if word)
    name = "-".join(word for word in words if word).replace("/", "_").replace(" ", "-")
    command = f"kvnet exp plot {run} --metric {metric}"
    return Figure(name, named, f"{counted} a point{interval}{left_out}; controls in grey", command, figure)


def _new_figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "kvnet"  # ids that repeat
    matplotlib.rcParams["font.size"] = 11
    figure = pyplot.figure(figsize=(6.4, 4.0))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    pyplot.close(figure)  # it lives on, but not in pyplot's list
    return figure, axes


def _numeric_axis(table: Table, rows: Iterable[Row]) -> str:
    """The parameter that takes most values in one arm, if they are numbers and enough for a line."""
    best, most = "", _MIN_POINTS - 1
    for name in table.varying:
        values: dict[str, set[str]] = {}
        for row in rows:
            if name in row.parameters:
                values.setdefault(row.arm, set()).add(value_text(row.parameters[name]))
        numbers = all(_is_number(row.parameters[name]) for row in rows if name in row.parameters)
        count = max(map(len, values.values()), default=0)
        if numbers and count > most:
            best, most = name, count
    return best


def _draw_lines(axes: Any, rows: Sequence[Row], metric: str, over: str, table: Table) -> None:
    others = [name for name in table.varying if name != over]
    for label, is_control, style, line in _styled(rows, table, others):
        points = sorted(
            (float(row.parameters[over]), row.values[metric]) for row in line if over in row.parameters
        )
        if not points:
            at = line[0].values[metric]
            axes.axhline(at.mean, label=label, **style)
            continue
        xs = [x for x, _ in points]
        axes.plot(
            xs, [at.mean for _, at in points], label=label, marker="" if is_control else "o", ms=4, **style
        )
        if not is_control:
            low, high = zip(*(_edges(at) for _, at in points), strict=True)
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _draw_dots(figure: Any, axes: Any, rows: Sequence[Row], metric: str, table: Table) -> None:
    labels = []
    figure.set_size_inches(6.4, max(2.0, 0.9 + 0.32 * len(rows)))
    colours = {
        arm: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(dict.fromkeys(row.arm for row in rows))
    }
    for place, row in enumerate(reversed(rows)):
        at = row.values[metric]
        low, high = _edges(at)
        colour = _GREY if row.is_control else colours[row.arm]
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([at.mean], [place], "o", color=colour, ms=6)
        labels.append(_label(row, table.varying))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)


def _styled(
    rows: Sequence[Row], table: Table, others: Sequence[str]
) -> Iterator[tuple[str, bool, dict[str, Any], list[Row]]]:
    """Lines by label, each with its colour; controls are grey and dashed, each in its own way."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(_label(row, others), []).append(row)
    plain = controls = 0
    for label, line in lines.items():
        is_control = line[0].is_control
        if is_control:
            style = {"color": _GREY, "linestyle": _DASHES[controls % len(_DASHES)], "linewidth": 1.4}
            controls += 1
        else:
            style = {"color": _COLOURS[plain % len(_COLOURS)], "linestyle": "-", "linewidth": 1.8}
            plain += 1
        yield label, is_control, style, line


def _label(row: Row, names: Iterable[str]) -> str:
    told = [f"{name} {value_text(row.parameters[name])}" for name in names if name in row.parameters]
    source = [f"from {row.source}"] if row.source and row.source != row.model else []
    return ", ".join([row.arm or "run", *source, *told])


def _edges(at: Estimate) -> tuple[float, float]:
    return (at.mean, at.mean) if at.low is None or at.high is None else (at.low, at.high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
