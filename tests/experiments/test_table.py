"""What is computed from logs: figures with intervals, margins, refusals, and the other forms of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import duckdb
import nbformat
import pytest

import kvnet.experiments as experiments
from kvnet.errors import MalformedRun, RequestError
from kvnet.experiments.diff import diff_runs
from kvnet.experiments.export import write_notebook, write_parquet
from kvnet.experiments.folder import EVENTS, RunFolder
from kvnet.experiments.freeze import freeze
from kvnet.experiments.join import join_logs
from kvnet.experiments.plot import make_figures
from kvnet.experiments.record import Event
from kvnet.experiments.sql import query
from kvnet.experiments.table import Row, Table, make_table
from tests.experiments.runs import CONTROLS, a_manifest, an_event, write_cell, write_run


def row_of(table: Table, arm: str, fraction: float | None = None) -> Row:
    wanted = {} if fraction is None else {"fraction": fraction}
    (row,) = [row for row in table.rows if row.arm == arm and row.parameters == wanted]
    return row


def test_figures_are_those_of_the_log_with_n_and_an_interval_around_them(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    table = make_table([path])
    bodies = [body for body in RunFolder.open(path).events() if isinstance(body, Event)]
    right = [e.values["right"] for e in bodies if e.arm == "kept" and e.parameters == {"fraction": 0.5}]
    at = row_of(table, "kept", 0.5).values["right"]
    assert (at.mean, at.n, at.units) == (pytest.approx(sum(right) / len(right)), 64, 16)
    assert at.low is not None
    assert at.high is not None
    assert at.low < at.mean < at.high
    assert {row.arm for row in table.rows if row.is_control} == set(CONTROLS)
    assert table.varying == ("fraction",)


def test_margin_is_judged_against_the_text_in_the_same_lessons(tmp_path: Path) -> None:
    table = make_table([write_run(tmp_path, lessons=40)])
    verdicts = {fraction: row_of(table, "kept", fraction).comparisons[0].verdict for fraction in (0.25, 0.5)}
    assert verdicts == {0.25: "worse", 0.5: "worse"}
    text = row_of(table, "text")
    assert text.comparisons == ()
    gap = row_of(table, "kept", 1.0).values["gap_recovered"]
    kept, none = (row_of(table, *arm).values["right"].mean for arm in (("kept", 1.0), ("none",)))
    assert 0.8 < gap.mean < 1.05
    assert kept > none


def test_lessons_that_were_all_alike_are_no_certainty(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, a_manifest(controls=())) as folder:
        for lesson in range(5):
            folder.append(an_event("", lesson=lesson))
    at = row_of(make_table([folder.path]), "text").values["right"]
    assert at.high == 1.0
    assert at.low == pytest.approx(math.pow(0.025, 1 / 5))


def test_failed_cell_is_a_row_with_its_reason(tmp_path: Path) -> None:
    table = make_table([write_run(tmp_path)])
    (failed,) = table.failures
    assert failed.reason.startswith("fraction is 7, wanted at most 1")
    assert (failed.code, failed.parameters) == ("request_invalid", {"fraction": 7.0})


def test_table_leaves_out_a_torn_line_and_cells_that_were_not_closed(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    before = make_table([path])
    with RunFolder.open(path, write=True) as folder:
        folder.append(an_event("open", "kept", 0.0, parameters={"fraction": 0.5}))
        folder.flush()
    with (path / EVENTS).open("ab") as file:
        file.write(b'{"v": 1, "ts": "20')
    after = make_table([path])
    assert after.rows == before.rows
    assert "the last line is torn (18 bytes" in after.notes[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"v": 2}', r"schema version 2, this kvnet reads 1"),
        ("{oops", r"events.jsonl line \d+: not strict JSON"),
    ],
)
def test_table_refuses_lines_it_cannot_read_by_their_number(tmp_path: Path, line: str, said: str) -> None:
    path = write_run(tmp_path)
    with (path / EVENTS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(MalformedRun, match=said):
        make_table([path])


def test_table_without_a_control_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    lines = (path / EVENTS).read_text().splitlines(keepends=True)
    (path / EVENTS).write_text("".join(line for line in lines if '"arm": "none"' not in line))
    with pytest.raises(MalformedRun, match="has no none; without this control"):
        make_table([path])


def test_figure_draws_over_the_parameter_that_varies_and_names_its_command(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    figures = {figure.name: figure for figure in make_figures(make_table([path]))}
    right = figures["right-facts-ref-a"]
    assert right.command == f"kvnet exp plot {path.name} --metric right"
    assert right.svg() == right.svg()
    assert right.svg().startswith("<svg")
    assert right.figure.axes[0].get_xlabel() == "fraction"
    assert "kl-facts-ref-a" not in figures  # the same everywhere


def test_arm_that_lacks_the_axis_stands_in_a_figure_of_its_own(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, a_manifest()) as folder:
        for place, fraction in enumerate((0.25, 0.5, 1.0)):
            folder.append(an_event(str(place), "odd", 0.0))
            write_cell(folder, str(place), fraction=fraction)
    figures = {figure.name: figure for figure in make_figures(make_table([folder.path]), ["right"])}
    along, other = figures["right-facts-ref-a"], figures["right-facts-ref-a-by-arm"]
    assert [line.get_label() for line in along.figure.axes[0].lines] == ["kept", "none", "text"]
    assert [label.get_text() for label in other.figure.axes[0].get_yticklabels()][-1:] == ["odd"]


def test_sql_sees_every_number_and_says_what_is_wrong_with_a_query(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    columns, rows = query([path], "SELECT arm, count(*) AS n FROM marks GROUP BY arm ORDER BY arm")
    assert columns == ["arm", "n"]
    assert rows == [(arm, 6 * 8 * 4 * 2) for arm in ("kept", "none", "text", "zeroed")]
    with pytest.raises(RequestError, match=r"sql: .*tables are measurements, marks"):
        query([path], "SELECT * FROM nowhere")


def test_two_runs_of_the_same_differ_in_nothing_but_their_seeds_noise(tmp_path: Path) -> None:
    a, b = write_run(tmp_path), write_run(tmp_path)
    same = diff_runs(a, b)
    assert not any(change.differs for change in same.changes)
    with RunFolder.create(tmp_path, a_manifest(codec="int8")) as folder:
        write_cell(folder, "0-0", fraction=0.25, lessons=40)
        write_cell(folder, "1-0", fraction=1.0, lessons=40)
    other = diff_runs(a, folder.path)
    assert other.made["codec"] == ("", "int8")
    assert other.only_first == 1


def test_exports_hold_what_the_log_holds(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    rows = write_parquet([path], tmp_path / "run.parquet")
    assert duckdb.read_parquet(str(tmp_path / "run.parquet")).fetchall()
    assert rows == 6 * 4 * 8 * 4 * 2
    write_notebook([path], tmp_path / "run.ipynb")
    notebook = nbformat.read(tmp_path / "run.ipynb", as_version=4)
    nbformat.validate(notebook)
    exec(notebook.cells[1].source, names := {})  # noqa: S102
    assert len(names["table"].rows) == len(make_table([path]).rows)
    with pytest.raises(RequestError, match="is there already"):
        write_parquet([path], tmp_path / "run.parquet")


def test_frozen_run_takes_no_lines_and_tells_if_it_was_changed(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    first = freeze(path, tmp_path / "a.zip")
    again = freeze(path, tmp_path / "b.zip")
    assert (again.digest, again.archive_digest) == (first.digest, first.archive_digest)
    assert again.was_frozen
    with pytest.raises(RequestError, match="is frozen"):
        RunFolder.open(path, write=True)
    (path / EVENTS).chmod(0o644)
    with (path / EVENTS).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(MalformedRun, match="was changed after the run was frozen"):
        freeze(path)


def node_log(path: Path, node: str, *lines: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps({"v": 1, "ts": "t", "node": node, **line}) + "\n" for line in lines))
    return path


def test_two_nodes_logs_are_joined_by_transfer_id(tmp_path: Path) -> None:
    moved = {"event": "transfer.completed", "transfer_id": "t1", "memory": "m", "raw_bytes": 100}
    moved |= {"wire_bytes": 50, "chunks": 4, "tier": "exact"}
    lost = {"event": "transfer.failed", "transfer_id": "t2", "error": "store_full", "message": "no room"}
    sender = node_log(
        tmp_path / "a.jsonl",
        "alice",
        {**moved, "direction": "out", "duration_s": 2.0},
        {**lost, "direction": "out"},
        {**moved, "transfer_id": "t3", "direction": "out"},
    )
    receiver = node_log(
        tmp_path / "b.jsonl",
        "bob",
        {**moved, "transfer_id": "t0", "direction": "in", "duration_s": 1.0},
        {"event": "generation.completed", "memory": "m", "ttft_s": 7.0},  # behind what t0 brought
        {**moved, "direction": "in", "duration_s": 1.0},
        {**lost, "direction": "in"},
        {"event": "generation.completed", "memory": "m", "ttft_s": 0.25},
    )
    table = make_table([join_logs((sender, receiver), tmp_path / "runs")])
    told = {row.arm: {name: at.mean for name, at in row.values.items()} for row in table.rows}
    assert told["answer"]["ttft_s"] == 0.25
    assert told["transfer"]["sent_s"] == 2.0
    assert told["transfer"]["received_s"] == 1.0
    assert {(row.source, row.model) for row in table.rows} == {("alice", "bob")}
    assert sorted(failed.reason for failed in table.failures) == [
        "alice: no room",
        "only a.jsonl of node alice tells of it",
        "only b.jsonl of node bob tells of it",
    ]
    with pytest.raises(MalformedRun, match="no transfer id is in both"):
        join_logs((sender, node_log(tmp_path / "c.jsonl", "carol")), tmp_path / "runs")


def test_tracker_logs_by_the_names_people_know(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"call kvnet.experiments.init\(name\) first"):
        experiments.log({"loss": 1.0})
    run = experiments.init("fit", config={"rank": 64}, runs_dir=tmp_path)
    for step in range(3):
        experiments.log({"loss": 1.0 - step / 4, "val": {"right": True}}, step=step)
    with pytest.raises(RequestError, match="loss is 'low', wanted a number"):
        experiments.log({"loss": "low"})
    experiments.finish()
    (row,) = make_table([run.folder.path]).rows
    assert (row.values["loss"].mean, row.values["val/right"].n) == (0.75, 3)
    assert row.parameters == {"rank": 64}
