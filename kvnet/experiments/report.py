"""One page that shows runs: their figures, their tables, and the command under each. It loads nothing.

Knows the table, not the logs. Everything that comes from a log is escaped; the page may run its own script
only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from kvnet.experiments.numbers import difference_text, interval_text, number_text
from kvnet.experiments.plot import Figure, make_figures
from kvnet.experiments.record import Manifest
from kvnet.experiments.table import Row, Table, value_text

_VERDICT_CLASS = {"not worse": "good", "worse": "bad", "open": "open"}
_SHOWN_ID_CHARS = 12


def make_page(tables: Sequence[Table]) -> str:
    """HTML, complete in itself; several tables follow each other below a list of them."""
    if len(tables) == 1:
        title, question = _names(tables[0]), _questions(tables[0])
        body = _table_parts(tables[0], 0)
    else:
        title, question = f"{len(tables)} runs", ""
        body = _contents(tables) + "\n".join(_article(table, place) for place, table in enumerate(tables))
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        question=escape(question),
        css=_asset("page.css"),
        js=_asset("page.js"),
        body=body,
    )


def _table_parts(table: Table, place: int) -> str:
    """All of one table; `place` makes its names its own."""
    figures = make_figures(table)
    parts = [_facts(table), _notes(table)]
    parts += [_section("Failed cells", _failures(table, place))] if table.failures else []
    parts += [_section("Margins", _margins(table, place))] if any(r.comparisons for r in table.rows) else []
    parts += [_section("Table", _rows(table, place))] if table.rows else []
    parts += [_section("Figures", _figures(figures))] if figures else []
    parts += [_section(f"Found by {run}", _summary(run, values)) for run, values in table.summaries.items()]
    parts += [_section("How it was made", _made(run)) for run in table.runs]
    return "\n".join(part for part in parts if part)


def _contents(tables: Sequence[Table]) -> str:
    links = (
        f'<li><a href="#run-{place}">{escape(_questions(table) or _names(table))}</a> '
        f'<span class="interval">{escape(_names(table))}</span></li>'
        for place, table in enumerate(tables)
    )
    return f'<nav><ol class="contents">{"".join(links)}</ol></nav>'


def _article(table: Table, place: int) -> str:
    return (
        f'<article id="run-{place}"><h2 class="run">{escape(_names(table))}</h2>'
        f'<p class="question">{escape(_questions(table))}</p>{_table_parts(table, place)}</article>'
    )


def _names(table: Table) -> str:
    return ", ".join(run.run for run in table.runs)


def _questions(table: Table) -> str:
    return " ".join(dict.fromkeys(run.question for run in table.runs if run.question))


def _facts(table: Table) -> str:
    facts: list[tuple[str, str]] = []
    for run in table.runs:
        models = ", ".join(f"{model.name} ({model.dtype or 'dtype unknown'})" for model in run.models)
        facts += [
            (
                "protocol",
                f"{run.protocol}, version {run.protocol_version}" if run.protocol_version else run.protocol,
            ),
            ("models", models),
            ("seeds", ", ".join(map(str, run.seeds))),
            ("cells", str(run.total_cells or "")),
            ("controls", ", ".join(run.controls)),
            ("begun", f"{run.created[:10]} {run.created[11:16]} UTC"),
        ]
    facts += [(name, value_text(value)) for name, value in table.fixed.items()]
    shown = [f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v]
    return f'<dl class="facts">{"".join(shown)}</dl>'


def _notes(table: Table) -> str:
    shown = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return f'<ul class="notes">{shown}</ul>' if shown else ""


def _rows(table: Table, place: int) -> str:
    columns = [*_leading(table), *table.varying, "n", *table.metrics]
    body = []
    for row in table.rows:
        told = [_cell(text, text) for text in _leading_texts(table, row)]
        told[-1] = _arm(row)
        told += [
            _cell(value_text(row.parameters.get(name)), value_text(row.parameters.get(name)))
            for name in table.varying
        ]
        n = max((at.n for at in row.values.values()), default=0)
        told.append(_cell(str(n), n))
        for metric in table.metrics:
            at = row.values.get(metric)
            shown = "" if at is None else escape(number_text(at.mean)) + _interval(interval_text(at))
            told.append(f'<td data-value="{"" if at is None else at.mean}">{shown}</td>')
        body.append(
            f'<tr class="control">{"".join(told)}</tr>' if row.is_control else f"<tr>{''.join(told)}</tr>"
        )
    hint = "Intervals are 95 % paired bootstrap over lessons. Controls stay visible whatever is filtered."
    field = (
        f'<input class="filter" type="search" data-table="rows-{place}" placeholder="Filter rows" '
        'aria-label="Filter rows">'
    )
    command = f"kvnet exp table {' '.join(run.run for run in table.runs)}"
    return f'<p class="hint">{hint}</p>{field}{_table(columns, body, f"rows-{place}")}{_command(command)}'


def _margins(table: Table, place: int) -> str:
    columns = [*_leading(table), *table.varying, "metric", "against", "difference", "margin", "verdict"]
    body = []
    for row in table.rows:
        for found in row.comparisons:
            told = [_cell(text, text) for text in _leading_texts(table, row)]
            told[-1] = _arm(row)
            told += [
                _cell(value_text(row.parameters.get(name)), value_text(row.parameters.get(name)))
                for name in table.varying
            ]
            kind = _VERDICT_CLASS[found.verdict]
            told += [
                _cell(found.margin.metric, found.margin.metric),
                _cell(found.margin.against, found.margin.against),
                f'<td data-value="{found.difference.mean}">{escape(difference_text(found.difference.mean))}'
                f"{_interval(interval_text(found.difference))}</td>",
                _cell(number_text(found.margin.at_most), found.margin.at_most),
                f'<td><span class="verdict {kind}">{escape(found.verdict)}</span></td>',
            ]
            body.append(
                f'<tr class="control">{"".join(told)}</tr>' if row.is_control else f"<tr>{''.join(told)}</tr>"
            )
    hint = "Set before the run: an arm is not worse if its whole interval lies within the margin."
    return f'<p class="hint">{hint}</p>{_table(columns, body, f"margins-{place}")}'


def _failures(table: Table, place: int) -> str:
    columns = ["cell", "parameters", "seed", "reason"]
    body = []
    for failed in table.failures:
        parameters = ", ".join(f"{name} {value_text(value)}" for name, value in failed.parameters.items())
        texts = [failed.cell.removeprefix("sha256:")[:_SHOWN_ID_CHARS], parameters, str(failed.seed)]
        told = "".join(_cell(text, text) for text in texts)
        body.append(f'<tr>{told}<td class="words">{escape(failed.reason)} [{escape(failed.code)}]</td></tr>')
    return _table(columns, body, f"failures-{place}")


def _figures(figures: Iterable[Figure]) -> str:
    shown = [
        f"<figure><h3>{escape(figure.title)}</h3>{figure.svg()}"
        f"<figcaption>{escape(figure.caption)}</figcaption>{_command(figure.command)}</figure>"
        for figure in figures
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


def _summary(run: str, values: Any) -> str:
    return f"<pre>{escape(json.dumps(values, indent=1, ensure_ascii=False))}</pre>" + _command(
        f"kvnet exp table {run} --json"
    )


def _made(run: Manifest) -> str:
    facts = [
        *(
            (f"model {model.name}", f"{model.fingerprint}, tokenizer {model.tokenizer}")
            for model in run.models
        ),
        *((f"model {model.name} runs as", _as_run(model)) for model in run.models),
        ("maps", ", ".join(run.maps)),
        ("codec", run.codec),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
        ("git", run.git),
        ("nodes", ", ".join(run.nodes)),
    ]
    shown = [f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v]
    return f'<dl class="facts made">{"".join(shown)}</dl>{_command(run.command)}'


def _as_run(model: Any) -> str:
    parts = (model.dtype, model.quantization, model.rope, model.device)
    return ", ".join(part for part in parts if part and part != "none")


def _leading(table: Table) -> list[str]:
    """Columns before the parameters; those that say the same everywhere are left out, but never the arm."""
    return [name for name in ("run", "task", "model", "source") if _differs(table, name)] + ["arm"]


def _leading_texts(table: Table, row: Row) -> list[str]:
    return [str(getattr(row, name)) for name in _leading(table)]


def _differs(table: Table, name: str) -> bool:
    return len({getattr(row, name) for row in table.rows}) > 1


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def _table(columns: Sequence[str], body: Sequence[str], name: str) -> str:
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(column)}</button></th>' for column in columns
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="sortable" id="{name}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(text: str, value: object) -> str:
    return f'<td data-value="{escape(str(value))}">{escape(text)}</td>'


def _arm(row: Row) -> str:
    tag = ' <span class="tag">control</span>' if row.is_control else ""
    return f'<td data-value="{escape(row.arm)}">{escape(row.arm)}{tag}</td>'


def _interval(text: str) -> str:
    return f' <span class="interval">{escape(text)}</span>' if text else ""


def _command(command: str) -> str:
    return f"<pre><code>{escape(command)}</code></pre>" if command else ""


def _asset(name: str) -> str:
    return (resources.files("kvnet.experiments") / "page" / name).read_text(encoding="utf-8")
